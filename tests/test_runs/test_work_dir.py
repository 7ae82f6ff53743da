# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Work dirs, and the configs and checkpoints that a user may give."""

import json

import numpy as np
import torch
from mmdet.registry import METRICS
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.runner import TestLoop as MMEngineTestLoop
from new_style import write_new_style
from outcomes import measured

from mmdet_ptq.passes import SetRanges
from mmdet_ptq.testing import random_detector

QUICK = ('--no-float-eval', '--calib-num', 2)
MINMAX = (*QUICK, '--recipe', 'minmax')


def files(work):
    return {p.name: p.read_bytes() for p in work.iterdir() if p.is_file()}


def test_settings_of_a_quantized_checkpoint(ptq):
    made = ptq(*MINMAX, '--bits', 'w8a8')
    before = files(made.work)
    for words in (['--bits', 'w8a8'], ['--recipe', 'minmax'], []):
        assert ptq(*words, checkpoint=made.artefact).code == 0
    assert ptq(*QUICK, checkpoint=made.artefact).code == 0
    for words, says in (
        (['--bits', 'w4a4'], "bits is 'w8a8', not 'w4a4'"),
        (['--recipe', 'uniform'], 'rules and passes of another recipe'),
        (['--calib-num', 3], 'num_samples is 2, not 3'),
        (
            [
                '--cfg-options',
                'quant_cfg.recipe=minmax',
                'quant_cfg.bits=w2a8',
            ],
            "bits is 'w8a8'",
        ),
    ):
        run = ptq(*words, checkpoint=made.artefact)
        assert run.code == 1 and run.err.count('error: ') == 1
        assert says in run.err and 'give the float checkpoint' in run.err
    # a test of what lies there changes nothing of it
    assert files(made.work) == before


def test_a_stopped_run_leaves_the_set(ptq, tmp_path, monkeypatch):
    made = ptq(*MINMAX)
    before = files(made.work)
    with monkeypatch.context() as patch:
        patch.setattr(SetRanges, 'run', stop)
        stopped = ptq('--calib-num', 2, '--recipe', 'minmax', '--bits', 'w4a4')
    assert stopped.code == 130
    left = files(made.work)
    assert left.pop('ptq_resume_0.pth') and left.pop('ptq_resume_float.pth')
    assert left == before
    runs = []
    monkeypatch.setattr(MMEngineTestLoop, 'run', counted(runs))
    words = ('--calib-num', 2, '--recipe', 'minmax', '--bits', 'w4a4')
    again = ptq(*words, '--resume')
    # the float metrics of the stopped run are taken over
    assert again.code == 0 and len(runs) == 1
    assert again.result['bits'] == 'w4a4' and again.result['float']
    assert Config.fromfile(made.work / 'retinanet.py').quant_cfg.bits == 'w4a4'
    assert again.digest == ptq(*words, work=tmp_path / 'whole').digest
    assert files(made.work).keys() == before.keys()
    assert not (made.work / 'unfinished').exists()


def stop(*_):
    raise KeyboardInterrupt


def counted(runs):
    run = MMEngineTestLoop.run

    def one(self):
        runs.append(1)
        return run(self)

    return one


def test_a_mistake_leaves_the_set(ptq, tiny, tmp_path):
    made = ptq(*MINMAX)
    before = files(made.work)
    config = tmp_path / 'retinanet.py'
    config.write_text(
        f"_base_ = r'{tiny.config['retinanet']}'\n"
        "quant_cfg = dict(recipe='minmax', bits='w8a8', "
        "rules=[dict(match='no.such', skip=True)])\n"
    )
    run = ptq(*QUICK, config=config)
    assert run.code == 1 and 'matches no' in run.err
    assert files(made.work) == before


def test_load_from_of_the_config(tiny, tmp_path, capsys):
    from mmdet_ptq.cli import main

    config = tmp_path / 'config.py'
    text = f"_base_ = r'{tiny.config['retinanet']}'\n"
    words = ['quantize', str(config), '--work-dir', str(tmp_path / 'work')]
    words += ['--device', 'cpu', *map(str, MINMAX)]
    config.write_text(text)
    assert main(words) == 1
    assert 'or set load_from' in capsys.readouterr().err
    url = tiny.checkpoint['retinanet'].as_uri()
    config.write_text(f'{text}load_from = {url!r}\n')
    assert main(words) == 0
    found = json.loads((tmp_path / 'work' / 'ptq_result.json').read_text())
    assert found['checkpoint']['path'] == url


def test_colours_of_mmdetection_2(ptq, tiny, tmp_path):
    old = torch.load(tiny.checkpoint['retinanet'], weights_only=True)
    old['meta'] = dict(CLASSES=('a', 'b', 'c'), PALETTE=[(1, 2, 3)] * 3)
    torch.save(old, tmp_path / 'old.pth')
    run = ptq(*MINMAX, checkpoint=tmp_path / 'old.pth')
    meta = torch.load(run.artefact, weights_only=True)['meta']
    assert meta['dataset_meta'] == dict(
        classes=('a', 'b', 'c'), palette=[(1, 2, 3)] * 3
    )


class OddMetric(BaseMetric):
    """Metrics of whatever type."""

    def process(self, *_):
        """Counts an image."""
        self.results.append(1)

    def compute_metrics(self, results):
        """As evaluators of other projects give them."""
        return dict(
            number=np.float32(0.5),
            array=np.arange(2),
            tensor=torch.tensor(0.25),
            list=[1, np.int64(2)],
            text='good',
            nothing=None,
        )


def test_metrics_of_any_type(ptq, tiny, tmp_path):
    METRICS.register_module(module=OddMetric)
    try:
        config = tmp_path / 'config.py'
        config.write_text(
            f"_base_ = r'{tiny.config['retinanet']}'\n"
            "test_evaluator = dict(_delete_=True, type='OddMetric')\n"
        )
        run = ptq('--calib-num', 2, '--recipe', 'minmax', config=config)
    finally:
        METRICS.module_dict.pop('OddMetric')
    assert run.code == 0, run.err
    expected = dict(
        number=0.5,
        array=[0, 1],
        tensor=0.25,
        list=[1, 2],
        text='good',
        nothing=None,
    )
    assert run.result['quantized'] == run.result['float'] == expected
    lines = run.out.replace('│', ' ').splitlines()
    rows = [line.split() for line in lines]
    assert ['number', '0.500', '0.500', '+0.000'] in rows
    assert ['tensor', '0.250', '0.250', '+0.000'] in rows
    assert not [row for row in rows if row[:1] == ['text']]


def test_a_new_style_config(ptq, mmdet_test, tiny, tmp_path):
    config = write_new_style(tmp_path, tiny.root, tiny.classes)
    model = random_detector(config)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'float.pth')
    run = ptq(*MINMAX, config=config, checkpoint=tmp_path / 'float.pth')
    assert run.code == 0, run.err
    metrics, out, _ = mmdet_test(run.work / 'new_style.py', run.artefact)
    assert measured(metrics) == run.result['quantized'] != {}
    assert all(len(o['pred_instances']['scores']) for o in out)
    again = ptq(
        config=run.work / 'new_style.py',
        checkpoint=run.artefact,
        work=tmp_path / 'again',
    )
    assert again.code == 0, again.err


TTA = """
tta_model = dict(
    type='DetTTAModel',
    tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100))
tta_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='TestTimeAug', transforms=[
        [dict(type='Resize', scale=(64, 64), keep_ratio=True)],
        [dict(type='RandomFlip', prob=1.), dict(type='RandomFlip', prob=0.)],
        [dict(type='PackDetInputs',
              meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape',
                         'scale_factor', 'flip', 'flip_direction'))]])]
"""


def test_time_augmentation(ptq, mmdet_test, tiny, tmp_path, monkeypatch):
    """MMDetection's test.py --tta, on quantized and on float."""
    config = tmp_path / 'tta.py'
    config.write_text(f"_base_ = r'{tiny.config['retinanet']}'\n{TTA}")
    run = ptq(*MINMAX, config=config)
    work_config = run.work / 'tta.py'
    plain, out, _ = mmdet_test(work_config, run.artefact)
    merged, merged_out, _ = mmdet_test(work_config, run.artefact, '--tta')
    assert merged.keys() == plain.keys()
    assert len(merged_out) == len(out)
    _, _, work = mmdet_test(work_config, tiny.checkpoint['retinanet'], '--tta')
    # its names are those of the detector inside
    names = [
        set(torch.load(path, weights_only=True)['tensors'])
        for path in (run.artefact, work / 'quantized.pth')
    ]
    assert names[0] == names[1]


def test_teacher_and_student(ptq, tiny, tmp_path):
    config = tmp_path / 'semi.py'
    config.write_text(
        f"_base_ = r'{tiny.config['retinanet']}'\n"
        'model = dict(_delete_=True, type="SemiBaseDetector",\n'
        '    detector={{_base_.model}},\n'
        '    data_preprocessor=dict(type="MultiBranchDataPreprocessor",\n'
        '        data_preprocessor={{_base_.preprocessor}}),\n'
        '    semi_train_cfg=dict(), semi_test_cfg=dict(predict_on="teacher"))'
    )
    weights = torch.load(tiny.checkpoint['retinanet'], weights_only=True)
    both = dict(
        state_dict={
            f'{who}.{name}': tensor if who == 'teacher' else tensor * 0
            for who in ('teacher', 'student')
            for name, tensor in weights['state_dict'].items()
        },
        meta=weights['meta'],
    )
    torch.save(both, tmp_path / 'semi.pth')
    semi = ptq(*MINMAX, config=config, checkpoint=tmp_path / 'semi.pth')
    assert semi.code == 0, semi.err
    plain = ptq(*MINMAX, work=tmp_path / 'plain')
    assert semi.digest == plain.digest
    assert semi.result['quantized'] == plain.result['quantized']
    again = ptq(checkpoint=semi.artefact, work=tmp_path / 'again')
    assert again.code == 0, again.err
    again = ptq(
        config=semi.work / 'semi.py',
        checkpoint=semi.artefact,
        work=tmp_path / 'again',
    )
    assert again.code == 0, again.err
    # a checkpoint of a wrapper on the config of the detector
    wrong = ptq(*MINMAX, checkpoint=tmp_path / 'semi.pth')
    assert wrong.code == 1 and "'teacher.' and 'student.'" in wrong.err
