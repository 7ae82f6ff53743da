# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The detection loss, by hand and against a plain loop."""

import math

import pytest
import torch
from head_rows import LOG2, LOG3, head, perturbed, random_head

from mmdet_ptq.errors import QuantConfigError
from mmdet_ptq.losses import DetectionLoss, GlobalLoss, PredictionDifference
from mmdet_ptq.registry import LOSSES, build_from
from mmdet_ptq.structures import DetectionOutputs


def logit(p):
    return math.log(p / (1 - p))


def bernoulli(p, q):
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def overlap(a, b):
    """IoU of two boxes (x1, y1, x2, y2), plain numbers."""
    w = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    h = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return w * h / (sum(area) - w * h)


#: three rows of two classes: sure, in between, empty. The box of row 0 moves
#: by a tenth of its width, that of row 1 leaves the float one.
FLOAT = head(
    [[logit(0.9), logit(0.2)], [logit(0.5), logit(0.5)], [-20.0, -20.0]],
    [[0, 0, 1, 2], [0, 0, 1, 1], [0, 0, 1, 1]],
)


QUANT = head(
    [[logit(0.8), logit(0.2)], [logit(0.5), logit(0.25)], [3.0, 0.0]],
    [[0.1, 0, 1.1, 2], [3, 0, 4, 1], [9, 9, 10, 10]],
)


ROW0 = bernoulli(0.9, 0.8)


ROW1 = bernoulli(0.5, 0.25)


# p = sigmoid(-20): -log(1 - q) is all that counts
ROW2 = math.log1p(math.exp(3)) + LOG2


def value(outputs, floats, **kwargs):
    loss = DetectionLoss(**kwargs)
    return float(loss([outputs], loss.targets([floats])))


def test_three_sigmoid_rows_by_hand():
    # row 2 is not confident; the box of row 1 does not overlap
    got = value(QUANT, FLOAT)
    assert got == pytest.approx((ROW0 + ROW1) / 2 + 0.2, rel=1e-4)
    loss = DetectionLoss()
    assert loss.parts([QUANT], loss.targets([FLOAT])) == pytest.approx(
        {
            'bbox_head.ce': (ROW0 + ROW1) / 2,
            'bbox_head.box': 0.2,
            'bbox_head.n_ce': 2,
            'bbox_head.n_box': 1,
        },
        rel=1e-4,
    )


@pytest.mark.parametrize(
    ('ce_mask', 'ce'),
    [
        ('hc', (ROW0 + ROW1) / 2),
        ('hc_hi', ROW0),
        ('none', (ROW0 + ROW1 + ROW2) / 3),
    ],
)
def test_masks_of_the_classes_by_hand(ce_mask, ce):
    got = value(QUANT, FLOAT, ce_mask=ce_mask)
    assert got == pytest.approx(ce + 0.2, rel=1e-4)


def test_thresholds_and_factors_by_hand():
    everything = value(QUANT, FLOAT, theta_i=0.0, theta_c=0.0, lam=0.5)
    boxes = (0.2 + 6 + 36) / 3
    assert everything == pytest.approx(
        (ROW0 + ROW1 + ROW2) / 3 + 0.5 * boxes, rel=1e-4
    )
    # IoU of row 0 is 18 / 22
    for theta_i, box in ((0.8, 0.2), (0.83, 0.0)):
        got = value(QUANT, FLOAT, theta_i=theta_i)
        assert got == pytest.approx((ROW0 + ROW1) / 2 + box, rel=1e-4)
    got = value(QUANT, FLOAT, theta_c=0.6, weight=3.0)
    assert got == pytest.approx(3 * (ROW0 + 0.2), rel=1e-4)
    got = value(QUANT, FLOAT, theta_c=0.6, p=2)
    assert got == pytest.approx(ROW0 + 2 * 0.1**2, rel=1e-4)


def test_decoded_boxes_by_hand():
    # the box moves by 1 pixel of 10: a tenth of its width, twice
    got = value(QUANT, FLOAT, theta_c=0.6, box_space='decoded')
    assert got == pytest.approx(ROW0 + 0.2, rel=1e-4)
    tall = head([[5.0]], [[0, 0, 1, 2]])
    moved = head([[5.0]], [[0, 0.1, 1, 2.1]])
    assert value(moved, tall) == pytest.approx(0.2, rel=1e-4)
    got = value(moved, tall, box_space='decoded')
    assert got == pytest.approx(0.1, rel=1e-4)


def test_three_softmax_rows_by_hand():
    # two classes, of which the last is the background
    floats = head(
        [[LOG3, 0.0], [0.0, 0.0], [-20.0, 20.0]],
        [[0, 0, 1, 1]] * 3,
        'softmax',
    )
    quant = head(
        [[0.0, 0.0], [0.0, LOG3], [20.0, -20.0]],
        [[0, 0, 1, 1], [0.25, 0, 1.25, 1], [0, 0, 1, 1]],
        'softmax',
    )
    # KL of (3/4, 1/4) from (1/2, 1/2) and of that from (1/4, 3/4); the
    # foreground of row 2 has no confidence
    first = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    second = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    got = value(quant, floats)
    assert got == pytest.approx((first + second) / 2 + 0.25, rel=1e-4)


def test_the_background_column_may_be_the_first():
    floats = head([[9.0, 0.0, 1.0]], [[[0, 0, 1, 1], [0, 0, 2, 2]]], 'softmax')
    floats.background = 0
    found = DetectionLoss(theta_c=0.0).targets([floats])[0]
    # class 1 of the foreground
    assert found['labels'].tolist() == [1]
    assert found['boxes'].tolist() == [[0, 0, 2, 2]]
    got = DetectionLoss().targets([floats])[0]
    assert len(got['rows']) == 1
    assert len(DetectionLoss(theta_c=0.01).targets([floats])[0]['rows']) == 0


def test_boxes_of_the_float_class():
    boxes = torch.zeros(2, 3, 4)
    boxes[..., 2:] = 1.0
    floats = head(
        [[0.0, 2.0, 1.0, 0.0], [3.0, 0.0, 1.0, 0.0]], boxes, 'softmax'
    )
    moved = boxes.clone()
    moved[0, 1] += 0.125
    moved[1, 0] += 0.25
    moved[0, 0] += 7  # not the likeliest class of the float model
    quant = head(floats.logits.flip(1), moved.requires_grad_(), 'softmax')
    loss = DetectionLoss()
    targets = loss.targets([floats])
    assert targets[0]['labels'].tolist() == [1, 0]
    parts = loss.parts([quant], targets)
    assert parts['bbox_head.box'] == pytest.approx((0.5 + 1.0) / 2)
    loss([quant], targets).backward()
    reached = moved.grad.abs().sum(2)
    assert reached[0, 1] > 0 and reached[1, 0] > 0
    assert (reached > 0).sum() == 2


def by_loop(quant, floats, c, i, lam, p, ce_mask, space, topk):
    """Eq. 8 in plain numbers."""
    y, z = floats.logits.tolist(), quant.logits.tolist()
    kept, ce, box = [], [], []
    confidence = []
    for row in y:
        if floats.activation == 'sigmoid':
            probs = [1 / (1 + math.exp(-v)) for v in row]
        else:
            total = sum(math.exp(v) for v in row)
            probs = [math.exp(v) / total for v in row][:-1]
        best = max(range(len(probs)), key=lambda j: probs[j])
        confidence.append((probs[best], best))
    for level in sorted(set(floats.levels.tolist())):
        rows = [r for r in range(len(y)) if floats.levels[r] == level]
        rows.sort(key=lambda r: -confidence[r][0])
        kept += rows[:topk]
    for r in kept:
        sure, label = confidence[r]
        b, d = floats.boxes[r], quant.boxes[r]
        if b.dim() == 2:
            b, d = b[label], d[label]
        b, d = b.tolist(), d.tolist()
        corners = [[10 * v + r for v in box] for box in (b, d)]
        hc, hi = sure >= c, overlap(*corners) >= i
        if hc and hi:
            if space == 'decoded':
                size = [corners[0][2 + k] - corners[0][k] for k in (0, 1)] * 2
                b, d = (
                    [v / s for v, s in zip(box, size, strict=True)]
                    for box in corners
                )
            box.append(sum(abs(u - v) ** p for u, v in zip(b, d, strict=True)))
        if not {'none': True, 'hc': hc, 'hc_hi': hc and hi}[ce_mask]:
            continue
        if floats.activation == 'sigmoid':
            pairs = [
                (1 / (1 + math.exp(-u)), 1 / (1 + math.exp(-v)))
                for u, v in zip(y[r], z[r], strict=True)
            ]
            ce.append(sum(bernoulli(*pair) for pair in pairs))
        else:
            totals = [sum(math.exp(v) for v in row) for row in (y[r], z[r])]
            pairs = [
                (math.exp(u) / totals[0], math.exp(v) / totals[1])
                for u, v in zip(y[r], z[r], strict=True)
            ]
            ce.append(sum(u * math.log(u / v) for u, v in pairs))
    return sum(ce) / max(1, len(ce)) + lam * sum(box) / max(1, len(box))


@pytest.mark.parametrize('ce_mask', ['hc', 'none', 'hc_hi'])
@pytest.mark.parametrize('space', ['raw', 'decoded'])
@pytest.mark.parametrize('activation', ['sigmoid', 'softmax'])
@pytest.mark.parametrize('k', [None, 3])
def test_against_a_plain_loop(ce_mask, space, activation, k):
    floats = random_head(1, activation, k=k)
    quant = perturbed(floats)
    for p, topk in ((1, 1000), (1.5, 8)):
        loss = DetectionLoss(
            theta_c=0.3,
            theta_i=0.4,
            lam=0.7,
            p=p,
            ce_mask=ce_mask,
            box_space=space,
            topk_per_level=topk,
        )
        got = float(loss([quant], loss.targets([floats])))
        want = by_loop(quant, floats, 0.3, 0.4, 0.7, p, ce_mask, space, topk)
        assert got == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize('activation', ['sigmoid', 'softmax'])
@pytest.mark.parametrize('ce_mask', ['hc', 'none', 'hc_hi'])
def test_a_perfect_copy_has_loss_zero(activation, ce_mask):
    floats = random_head(2, activation)
    for space in ('raw', 'decoded'):
        assert value(floats, floats, ce_mask=ce_mask, box_space=space) == 0
    loss = PredictionDifference()
    assert float(loss([floats], loss.targets([floats]))) == 0


def test_a_perfect_copy_is_the_minimum():
    floats = random_head(2, 'sigmoid')
    copied = DetectionOutputs(
        **{**vars(floats), 'logits': floats.logits.clone().requires_grad_()}
    )
    loss = DetectionLoss(theta_c=0.0)
    loss([copied], loss.targets([floats])).backward()
    assert copied.logits.grad.abs().max() < 1e-6
    for seed in range(5):
        assert value(perturbed(floats, seed), floats) > 0


def test_nothing_kept_is_a_finite_zero():
    floats = random_head(3, 'sigmoid')
    quant = perturbed(floats)
    for theta_c in (1.0 + 1e-6, 1.1):
        loss = DetectionLoss(theta_c=theta_c)
        targets = loss.targets([floats])
        got = loss([quant], targets)
        got.backward()
        assert float(got) == 0
        assert not quant.logits.grad.any()
        assert not quant.boxes.grad.any()
        assert set(loss.parts([quant], targets).values()) == {0.0}
        assert len(targets[0]['rows']) == 0


def test_gradients_vanish_for_masked_rows_only():
    loss = DetectionLoss()
    logits = QUANT.logits.clone().requires_grad_()
    boxes = QUANT.boxes.clone().requires_grad_()
    quant = head(logits, boxes)
    loss([quant], loss.targets([FLOAT])).backward()
    assert logits.grad[0].any() and logits.grad[1].any()
    assert boxes.grad[0].any()
    # low confidence; low IoU
    assert not logits.grad[2].any() and not boxes.grad[1:].any()
    # of the cross-entropy: (q - p) / n
    assert float(logits.grad[0, 0]) == pytest.approx(-0.1 / 2, rel=1e-4)


def test_masked_rows_may_be_infinite():
    floats = random_head(4, 'softmax')
    quant = perturbed(floats)
    loss = DetectionLoss(theta_c=0.5)
    targets = loss.targets([floats])
    gone = torch.ones(len(floats.logits), dtype=torch.bool)
    gone[targets[0]['rows']] = False
    with torch.no_grad():
        quant.logits[gone] = float('inf')
    got = loss([quant], targets)
    got.backward()
    assert got.isfinite() and quant.boxes.grad.isfinite().all()


def test_heads_are_added_and_images_of_a_head_share_a_mean():
    rpn = random_head(5, 'sigmoid', 1, 'rpn_head')
    roi = random_head(6, 'softmax', name='roi_head.bbox_head')
    quant = [perturbed(rpn), perturbed(roi)]
    loss = DetectionLoss()
    total = float(loss(quant, loss.targets([rpn, roi])))
    alone = value(quant[0], rpn) + value(quant[1], roi)
    assert total == pytest.approx(alone, rel=1e-5)
    # one image with two rows kept, one with one: not the mean of means
    loss = DetectionLoss(theta_i=1.0)
    one = head(FLOAT.logits[:1], FLOAT.boxes[:1])
    other = head(QUANT.logits[:1], QUANT.boxes[:1])
    pair = loss([QUANT, other], loss.targets([FLOAT, one]))
    assert float(pair) == pytest.approx((2 * ROW0 + ROW1) / 3, rel=1e-4)


def test_levels_have_their_own_quota():
    logits = torch.tensor([[3.0], [2.0], [1.0], [0.0], [-1.0], [0.5]])
    levels = torch.tensor([0, 0, 0, 1, 1, 1])
    found = head(logits, levels=levels)
    for limit, rows in (
        (1, [0, 5]),
        (2, [0, 1, 3, 5]),
        (None, [0, 1, 2, 3, 4, 5]),
    ):
        for loss in (DetectionLoss, PredictionDifference):
            targets = loss(topk_per_level=limit).targets([found])
            assert targets[0]['rows'].tolist() == rows
    found.levels = None
    targets = DetectionLoss(topk_per_level=2).targets([found])
    assert targets[0]['rows'].tolist() == [0, 1]


def test_targets_are_small_constants():
    floats = random_head(7, 'sigmoid')
    floats.logits.requires_grad_()
    floats.boxes.requires_grad_()
    (found,) = DetectionLoss(theta_c=0.5).targets([floats])
    count = len(found['rows'])
    assert 0 < count < 40
    assert all(len(v) == count for v in found.values())
    assert not any(v.requires_grad for v in found.values())
    assert set(found) == {
        'rows',
        'logits',
        'hc',
        'labels',
        'boxes',
        'corners',
    }


def test_heads_without_boxes():
    floats, quant = head([[2.0, 1.0]]), head([[1.0, 1.0]])
    assert value(quant, floats) > 0
    assert value(quant, floats, ce_mask='hc_hi') == value(quant, floats)
    parts = DetectionLoss().parts([quant], DetectionLoss().targets([floats]))
    assert parts['bbox_head.n_box'] == 0
    blind = head([[2.0]], [[0, 0, 1, 1]], decode=None)
    moved = head([[2.0]], [[9, 9, 10, 10]], decode=None)
    # no corners, no IoU
    assert value(moved, blind) == pytest.approx(36)
    with pytest.raises(ValueError, match='bbox_head has no decode'):
        value(moved, blind, box_space='decoded')


def test_masks_count_when_asked_for():
    box = random_head(8, 'softmax', name='roi_head.bbox_head')
    floats = head([[0.0, 0.0], [LOG3, 0.0]], name='roi_head.mask_head')
    quant = head([[LOG3, 0.0], [LOG3, -LOG3]], name='roi_head.mask_head')
    plain, loss = DetectionLoss(), DetectionLoss(mask=True)
    both = [box, floats]
    assert float(plain([box, quant], plain.targets(both))) == 0
    got = loss([box, quant], loss.targets(both))
    # two of four pixels go from 1/2 to 3/4 or 1/4
    assert float(got) == pytest.approx(2 * bernoulli(0.5, 0.75) / 4)
    pd = PredictionDifference()
    assert float(pd([box, quant], pd.targets(both))) == 0


def test_no_rows_at_all():
    empty = head(torch.zeros(0, 3), torch.zeros(0, 4), 'softmax', name='roi')
    full = random_head(8, 'sigmoid', name='rpn_head')
    for loss in (DetectionLoss(), PredictionDifference()):
        targets = loss.targets([full, empty])
        assert float(loss([full, empty], targets)) == 0


@pytest.mark.parametrize('kind', [DetectionLoss, PredictionDifference])
def test_raw_tensors_are_compared_by_l2(kind):
    loss = kind(weight=2.0)
    factor = 2.0 if kind is DetectionLoss else 20.0
    floats = [torch.zeros(2), torch.ones(1, 1)]
    quant = [torch.tensor([3.0, 0.0], requires_grad=True), torch.ones(1, 1)]
    targets = loss.targets(floats)
    got = loss(quant, targets)
    assert float(got) == pytest.approx(factor * 9 / 3)
    assert loss.parts(quant, targets) == {'raw.l2': 3.0}
    got.backward()
    assert quant[0].grad.tolist() == pytest.approx([factor * 2, 0])
    with pytest.raises(ValueError, match=r'differ in shape.*\(2,\)'):
        loss([torch.zeros(3), torch.ones(1, 1)], targets)


def test_outputs_and_targets_have_to_correspond():
    for loss in (DetectionLoss(), PredictionDifference()):
        with pytest.raises(ValueError):
            loss([QUANT, QUANT], loss.targets([FLOAT]))


@pytest.mark.parametrize(
    ('kind', 'key', 'bad', 'says'),
    [
        ('DetectionLoss', 'theta_c', -0.1, 'from 0 to 1.1'),
        ('DetectionLoss', 'theta_c', 2, 'from 0 to 1.1'),
        ('DetectionLoss', 'theta_c', '0.1', 'from 0 to 1.1'),
        ('DetectionLoss', 'theta_c', float('nan'), 'from 0 to 1.1'),
        ('DetectionLoss', 'theta_i', 1.01, 'from 0 to 1,'),
        ('DetectionLoss', 'theta_i', -1, 'from 0 to 1,'),
        ('DetectionLoss', 'lam', -1.0, 'at least 0'),
        ('DetectionLoss', 'lam', float('inf'), 'at least 0'),
        ('DetectionLoss', 'p', 0.5, 'at least 1'),
        ('DetectionLoss', 'weight', -1, 'at least 0'),
        ('DetectionLoss', 'topk_per_level', 0, 'None: all rows'),
        ('DetectionLoss', 'topk_per_level', 2.5, 'None: all rows'),
        ('DetectionLoss', 'ce_mask', 'hi_hc', 'hc_hi'),
        ('DetectionLoss', 'box_space', 'corner', 'decoded, raw'),
        ('PredictionDifference', 'temperature', 0, 'at least'),
        ('PredictionDifference', 'lambda_r', 0.0, 'at least'),
        ('PredictionDifference', 'weight', None, 'at least 0'),
        ('PredictionDifference', 'topk_per_level', -3, 'None: all rows'),
    ],
)
def test_bad_arguments_are_refused(kind, key, bad, says):
    with pytest.raises(QuantConfigError, match=key) as error:
        build_from(LOSSES, {'type': kind, key: bad})
    assert says in str(error.value)


def test_both_are_global():
    for kind in ('DetectionLoss', 'PredictionDifference'):
        loss = build_from(LOSSES, dict(type=kind))
        assert isinstance(loss, GlobalLoss) and loss.weight == 1.0


@pytest.mark.parametrize('ce_mask', ['hc', 'none', 'hc_hi'])
@pytest.mark.parametrize('activation', ['sigmoid', 'softmax'])
def test_no_number_is_asked_for(activation, ce_mask):
    """On a device that has none, value and gradient have their shapes."""
    floats = random_head(0, activation)
    quant = perturbed(floats)
    loss = DetectionLoss(ce_mask=ce_mask)
    (target,) = loss.targets([floats])
    target = {k: v.to('meta') for k, v in target.items()}
    there = DetectionOutputs(
        **{
            **vars(quant),
            'logits': quant.logits.detach().to('meta').requires_grad_(),
            'boxes': quant.boxes.detach().to('meta').requires_grad_(),
            'levels': None,
        }
    )
    value = loss([there], [target])
    assert value.is_meta and value.shape == ()
    value.backward()
    assert there.logits.grad.shape == quant.logits.shape
    assert there.boxes.grad.shape == quant.boxes.shape
