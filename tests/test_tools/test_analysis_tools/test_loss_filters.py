# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What the filters of the global loss take away."""

import pytest

from tools.analysis_tools import loss_filters as tool


@pytest.mark.parametrize('shift', [0, 1000])
def test_counts(monkeypatch, shift):
    """No box is far from itself, all are from one that many widths away."""
    anchors = []

    def quantize(model, batches, cfg):
        assert (cfg['recipe'], cfg['bits']) == ('uniform', 'w2a4')
        for batch in batches:
            sides = batch['inputs'][0].shape[1:]
            for stride in (8, 16, 32, 64, 128):
                # inputs are padded to multiples of 32
                cells = [-(-(-(-n // 32) * 32) // stride) for n in sides]
                anchors.append(9 * cells[0] * cells[1])
        model.bbox_head.retina_reg.bias.view(-1, 4)[:, 0] += shift

    monkeypatch.setattr(tool, 'quantize_detector', quantize)
    (row,) = tool.study('retinanet', 2)
    assert len(anchors) == 2 * 5
    assert row['boxes'] == sum(anchors)
    kept = row['confident']
    assert row['boxes'] == kept['0'] > kept['0.0002'] > kept['0.01'] > 0
    assert row['far'] == (kept if shift else dict.fromkeys(kept, 0))


def test_table():
    row = dict(
        detector='retinanet',
        head='bbox_head',
        boxes=200,
        confident={'0': 200, '0.0002': 50, '0.01': 0},
        far={'0': 20, '0.0002': 1, '0.01': 0},
    )
    text = tool.to_markdown([row], 3)
    assert 'Boxes of 3 calibration images' in text
    assert '| detector | head | boxes | θ_C = 0 | θ_C = 0.0002 |' in text
    assert (
        '| retinanet | bbox_head | 200 | 100.00%, 10.00% | '
        '25.00%, 2.00% | 0.00%, 0.00% |'
    ) in text
