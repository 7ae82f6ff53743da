# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Saved, loaded, and tested by MMDetection's own tools: the same bits."""

import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner
from outcomes import measured, same

from mmdet_ptq import load_quantized, quantize_detector
from mmdet_ptq.apis import save_quantized
from mmdet_ptq.engine import CalibLoop
from mmdet_ptq.errors import CheckpointError
from mmdet_ptq.layers import float_mode


@pytest.fixture
def calibrations(monkeypatch):
    """Counts calibrations."""
    found = []
    run = CalibLoop.predict

    def counted(self, *args, **kwargs):
        found.append(1)
        return run(self, *args, **kwargs)

    monkeypatch.setattr(CalibLoop, 'predict', counted)
    return found


@pytest.mark.parametrize('model', ['retinanet', 'mask_rcnn'])
def test_mmdet_test(ptq, tiny, tmp_path, mmdet_test, calibrations, model):
    config = tmp_path / 'with_quant.py'
    config.write_text(
        f"_base_ = r'{tiny.config[model]}'\nrunner_type = 'PTQRunner'\n"
        "quant_cfg = dict(recipe='uniform', bits='w4a4', "
        'calibration=dict(num_samples=4))\n'
    )
    float_metrics, float_out, work = mmdet_test(config, tiny.checkpoint[model])
    assert len(calibrations) == 1
    metrics, out, _ = mmdet_test(config, work / 'quantized.pth')
    assert len(calibrations) == 1
    assert measured(metrics) == measured(float_metrics) != {}
    assert same(out, float_out)
    assert all(len(o['pred_instances']['scores']) for o in out)
    if model == 'retinanet':  # random masks and classes never hit
        assert any(v > 0 for v in measured(metrics).values())
    # the same by our own tool, whose dumped config mmdet's tool takes
    run = ptq(
        '--bits', 'w4a4', '--calib-num', 4, '--no-float-eval', model=model
    )
    assert run.artefact.read_bytes() == (work / 'quantized.pth').read_bytes()
    dumped = next(run.work.glob('*.py'))
    again, out, _ = mmdet_test(dumped, run.artefact)
    assert (
        measured(again)
        == measured(metrics)
        == {k: v for k, v in run.result['quantized'].items()}
    )
    assert same(out, float_out)
    assert len(calibrations) == 2


def test_quantization_changes_predictions(tiny, mmdet_test, ptq):
    """The comparisons above would see a difference."""
    low = ptq('--bits', 'w4a4', '--no-float-eval')
    high = ptq('--no-float-eval', work=low.work / 'high')
    config = next(low.work.glob('*.py'))
    assert not same(
        mmdet_test(config, low.artefact)[1],
        mmdet_test(config, high.artefact)[1],
    )


@pytest.fixture
def built(tiny):
    """A detector with its weights, and its calibration batches."""

    def build(name):
        register_all_modules()
        cfg = Config.fromfile(tiny.config[name])
        model = MODELS.build(cfg.model).eval()
        model.load_state_dict(
            torch.load(tiny.checkpoint[name], weights_only=True)['state_dict']
        )
        dataset = Runner.build_dataloader(cfg.test_dataloader).dataset
        return model, [pseudo_collate([d]) for d in dataset]

    return build


def predictions(model, batches):
    with torch.no_grad():
        return [
            s.pred_instances.to_dict()
            for b in copy.deepcopy(batches)
            for s in model.test_step(b)
        ]


@pytest.mark.parametrize('name', ['retinanet', 'mask_rcnn'])
def test_python_door(built, tmp_path, name):
    model, batches = built(name)
    before = predictions(model, batches)
    session = quantize_detector(
        model,
        batches,
        dict(
            recipe='uniform',
            bits='w4a6',
            rules=[dict(match='*.conv1', weight=dict(symmetric=True))],
        ),
    )
    after = predictions(model, batches)
    assert not same(before, after)
    save_quantized(session, tmp_path / 'q.pth')
    fresh = load_quantized(built(name)[0].train(), tmp_path / 'q.pth')
    assert not any(m.training for m in fresh.modules())
    assert same(predictions(fresh, batches), after)
    with pytest.raises(RuntimeError, match='baked'), float_mode(fresh):
        pass
    for key, value in model.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[key]), key


def test_artefact_of_another_architecture(ptq, built, tiny):
    run = ptq('--no-float-eval', '--recipe', 'minmax')
    with pytest.raises(
        CheckpointError,
        match=r'another .*retina_cls|another '
        r'architecture.*bbox_head\.cls_convs',
    ):
        load_quantized(built('mask_rcnn')[0], run.artefact)
    wrong = ptq(model='mask_rcnn', checkpoint=run.artefact)
    assert wrong.code == 1
    assert 'another architecture' in wrong.err
    wider = ptq(
        '--cfg-options',
        'model.bbox_head.feat_channels=24',
        checkpoint=run.artefact,
    )
    assert wider.code == 1
    assert 'bbox_head.' in wider.err
    deeper = ptq(
        '--cfg-options',
        'model.bbox_head.stacked_convs=2',
        checkpoint=run.artefact,
    )
    assert deeper.code == 1
    assert 'bbox_head.cls_convs.1' in deeper.err


@pytest.mark.parametrize(
    'damage',
    [
        lambda s: s['mmdet_ptq'].pop('layers'),
        lambda s: s['mmdet_ptq'].update(format=99),
        lambda s: s['mmdet_ptq']['edits'][-1].update(norm='no.such'),
        lambda s: s['tensors'].popitem(),
        lambda s: s['codes'].update(no=torch.zeros(1)),
    ],
    ids=['layers', 'format', 'edits', 'tensors', 'codes'],
)
def test_damaged_artefact(built, tmp_path, damage):
    model, batches = built('retinanet')
    session = quantize_detector(
        model, batches[:1], dict(recipe='minmax', bits='w8a8')
    )
    save_quantized(session, tmp_path / 'q.pth')
    saved = torch.load(tmp_path / 'q.pth', weights_only=True)
    damage(saved)
    torch.save(saved, tmp_path / 'damaged.pth')
    with pytest.raises(CheckpointError):
        load_quantized(built('retinanet')[0], tmp_path / 'damaged.pth')


def test_float_checkpoint_is_no_artefact(built, tiny):
    with pytest.raises(CheckpointError, match='no quantized checkpoint'):
        load_quantized(built('retinanet')[0], tiny.checkpoint['retinanet'])


def test_artefact_of_the_first_format(built, tmp_path):
    """Its folds stand in for edits; whatever can be decomposed was."""
    model, batches = built('retinanet')
    session = quantize_detector(
        model, batches[:1], dict(recipe='minmax', bits='w8a8')
    )
    save_quantized(session, tmp_path / 'q.pth')
    saved = torch.load(tmp_path / 'q.pth', weights_only=True)
    edits = saved['mmdet_ptq'].pop('edits')
    folds = {e['norm']: e['layer'] for e in edits}
    saved['mmdet_ptq'].update(format=1, folds=folds)
    torch.save(saved, tmp_path / 'old.pth')
    assert folds
    old = load_quantized(built('retinanet')[0], tmp_path / 'old.pth')
    new = load_quantized(built('retinanet')[0], tmp_path / 'q.pth')
    ours, theirs = old.state_dict(), new.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
