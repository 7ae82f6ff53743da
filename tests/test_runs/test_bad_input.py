# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Every mistake a user can make ends in one message, not in a traceback."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from mmdet_ptq.calibration import CalibrationImages
from mmdet_ptq.engine import CalibLoop
from mmdet_ptq.errors import PTQError

QUICK = ('--no-float-eval', '--calib-num', 2, '--recipe', 'minmax')


class Untrusted:
    """An object that only a trusted checkpoint may hold."""


def refused(run, *says):
    """Asserts that a run failed with one message that says all of these."""
    assert run.code != 0
    assert 'Traceback' not in run.err + run.out
    assert run.err.count('error: ') == 1, run.err
    message = run.err.split('error: ')[1]
    for text in says:
        assert text in message, message
    return message


@pytest.fixture
def weights(tiny):
    return torch.load(tiny.checkpoint['retinanet'], weights_only=True)


@pytest.fixture
def saved(tmp_path):
    """Saves a checkpoint for one test."""

    def save(checkpoint, **kwargs):
        path = tmp_path / 'changed.pth'
        torch.save(checkpoint, path, **kwargs)
        return path

    return save


@pytest.fixture
def edited(tiny, tmp_path):
    """Writes a config that inherits from the tiny RetinaNet."""

    def edit(text):
        path = tmp_path / 'edited.py'
        path.write_text(f"_base_ = r'{tiny.config['retinanet']}'\n{text}")
        return path

    return edit


# checkpoints ---------------------------------------------------------------


def test_missing_checkpoint(ptq, tmp_path):
    path = tmp_path / 'none.pth'
    refused(ptq(*QUICK, checkpoint=path), str(path), 'does not exist')


def test_checkpoint_is_a_folder(ptq, tmp_path):
    refused(ptq(*QUICK, checkpoint=tmp_path), str(tmp_path), 'is a folder')


@pytest.mark.parametrize(
    'damage',
    [
        lambda data: data[: len(data) // 2],
        lambda data: b'',
        lambda data: b'<html>404: not found</html>',
        lambda data: b'\x80\x02}q\x00.',
        lambda data: os.urandom(5000),
    ],
    ids=['truncated', 'empty', 'text', 'pickle', 'noise'],
)
def test_corrupt_checkpoint(ptq, tiny, tmp_path, damage):
    path = tmp_path / 'corrupt.pth'
    path.write_bytes(damage(tiny.checkpoint['retinanet'].read_bytes()))
    refused(ptq(*QUICK, checkpoint=path), str(path), 'corrupt')


def test_checkpoint_that_is_no_dict(ptq, saved):
    refused(ptq(*QUICK, checkpoint=saved([1, 2])), 'list, not a dict')
    refused(
        ptq(*QUICK, checkpoint=saved(dict(state_dict=[1]))),
        "'state_dict'",
        'list, not a dict',
    )


def test_other_architecture_lists_keys(ptq, tiny):
    refused(
        ptq(*QUICK, checkpoint=tiny.checkpoint['mask_rcnn']),
        'another architecture',
        'missing',
        'bbox_head.retina_cls.weight',
        'unexpected',
        'roi_head.bbox_head.fc_cls.weight',
    )


def test_other_class_count_lists_shapes(ptq, weights, saved):
    name = 'bbox_head.retina_cls.bias'
    weights['state_dict'][name] = torch.zeros(21)
    message = refused(
        ptq(*QUICK, checkpoint=saved(weights)),
        'other shape',
        f'{name}: (21,) in the file, (9,) in the model',
    )
    assert 'missing' not in message


def test_untrusted_checkpoint(ptq, weights, saved):
    weights['meta']['extra'] = Untrusted()
    path = saved(weights)
    refused(
        ptq(*QUICK, checkpoint=path),
        'test_bad_input.Untrusted',
        '--trust-checkpoint',
    )
    assert ptq(*QUICK, '--trust-checkpoint', checkpoint=path).code == 0


def test_training_checkpoint_needs_no_trust(ptq, weights, saved):
    log = HistoryBuffer([1.0, 2.0], [1, 1])
    log.update(np.float64(3.0))
    weights.update(
        message_hub=dict(
            log_scalars={'train/loss': log},
            runtime_info=dict(
                best=np.float32(0.5),
                lr=np.array([1.0, 2.0]),
                count=np.int64(4),
            ),
            resumed_keys={},
        ),
        optimizer=dict(
            state={0: dict(step=torch.tensor(1.0))},
            param_groups=[dict(lr=np.float64(0.1))],
        ),
        param_schedulers=[dict(last_step=3)],
    )
    weights['meta'].update(
        epoch=1,
        iter=3,
        cfg='model = dict()',
        seed=1,
        experiment_name='x',
        time=datetime(2024, 1, 1).strftime('%Y'),
        mmengine_version='0.10',
    )
    assert ptq(*QUICK, checkpoint=saved(weights)).code == 0


def test_old_checkpoint(ptq, weights, saved):
    old = dict(
        state_dict={
            f'module.{k}': v for k, v in weights['state_dict'].items()
        },
        meta=dict(
            CLASSES=('dark', 'grey', 'light'),
            config='model = dict()',
            mmdet_version='2.3.0',
            epoch=12,
            iter=9,
            PALETTE=[(1, 2, 3)],
        ),
    )
    path = saved(old, _use_new_zipfile_serialization=False)
    assert ptq(*QUICK, checkpoint=path).code == 0


def test_bare_state_dict(ptq, weights, saved):
    assert ptq(*QUICK, checkpoint=saved(weights['state_dict'])).code == 0


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_bad_weight_names_the_layer(ptq, weights, saved, value):
    name = 'backbone.layer2.0.conv1.weight'
    weights['state_dict'][name][0, 0, 0, 0] = value
    refused(ptq(*QUICK, checkpoint=saved(weights)), name, 'NaN or Inf')


def test_bad_activation_names_the_layer(ptq, weights, saved):
    weights['state_dict']['backbone.layer2.0.bn1.weight'].fill_(3e38)
    message = refused(
        ptq(*QUICK, checkpoint=saved(weights)),
        'NaN or Inf',
        'backbone.layer2.0.conv2',
    )
    assert 'layer1' not in message


# quant_cfg -----------------------------------------------------------------


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        (
            ['--recipe', 'minmaxx'],
            ["'minmaxx'", "Did you mean 'minmax'?", 'uniform'],
        ),
        (['--recipe', 'nowhere/recipe.py'], ['nowhere/recipe.py', 'uniform']),
        (['--bits', 'w1a8'], ["'w1a8'", '1 is not', 'from 2 to 8']),
        (['--bits', 'w8a9'], ["'w8a9'", '9 is not', 'from 2 to 8']),
        (['--bits', 'w4a4s16'], ['16 is not', 'from 2 to 8']),
        (['--bits', 'int8'], ["'int8'", "'w8a8'"]),
        (['--calib-num', '0'], ['num_samples', '0', 'from 1']),
        (
            ['--calib-source', 'no/such/folder'],
            ['no/such/folder', '"train"', 'folder of images'],
        ),
    ],
    ids=lambda v: ' '.join(v) if v[0].startswith('--') else '',
)
def test_bad_option(ptq, arguments, says):
    refused(ptq('--no-float-eval', *arguments), *says)


RULE = "quant_cfg = dict(recipe='uniform', bits='w8a8', rules=[dict({})])"
PASS = (
    "quant_cfg = dict(bits='w8a8', rules=[dict(match='*', act=dict())], "
    'passes=[dict({})])'
)


@pytest.mark.parametrize(
    ('text', 'says'),
    [
        (
            RULE.format("match='*', wieght=dict(bits=4)"),
            ['rules[', "'wieght'", "Did you mean 'weight'?", 'skip'],
        ),
        (
            RULE.format("match='*', weight=dict(type='UniformQuantiser')"),
            ["'UniformQuantiser'", "Did you mean 'UniformQuantizer'?"],
        ),
        (
            RULE.format("match='*', act=dict(granularty='channel')"),
            ["'granularty'", "Did you mean 'granularity'?"],
        ),
        (
            RULE.format("match='*', act=dict(granularity='chanel')"),
            ["'chanel'", 'channel', '.act'],
        ),
        (
            RULE.format("match='*', weight=dict(bits=9)"),
            ['.weight.bits', '9 is not', 'from 2 to 8', 'skip=True'],
        ),
        (
            RULE.format("match='*', act=dict(bits=1)"),
            ['.act.bits', '1 is not', 'from 2 to 8'],
        ),
        (
            RULE.format("match='@sten', skip=True"),
            ["'@sten'", "Did you mean '@stem'?", '@prediction'],
        ),
        (
            RULE.format("match='bbox_head.cls_conv.*', skip=True"),
            [
                "'bbox_head.cls_conv.*'",
                'matches no',
                'Did you mean',
                'bbox_head.cls_convs.0.conv',
            ],
        ),
        (RULE.format('match=3'), ["'match' must be"]),
        (RULE.format("match='*', skip=1"), ['skip=1', 'True or False']),
        (PASS.format("type='Observ'"), ["'Observ'", "'Observe'?"]),
        (
            PASS.format("type='Observe', observr=dict(type='LpObserver')"),
            ["'observr'", "Did you mean 'observer'?"],
        ),
        (
            PASS.format("type='Observe', observer=dict(type='LPObservr')"),
            ['observer', "'LPObservr'", "Did you mean 'LpObserver'?"],
        ),
        (
            PASS.format(
                "type='Observe', observer=dict(type='LpObserver', stepz=3)"
            ),
            ["'stepz'", "Did you mean 'steps'?"],
        ),
        (
            PASS.format(
                "type='Observe', observer=dict(type='LpObserver', p=-1)"
            ),
            ['Observe.observer', 'p must be a number above 0', '-1'],
        ),
        (
            "quant_cfg = dict(recipe='uniform', bit='w8a8')",
            ["'bit'", "Did you mean 'bits'?"],
        ),
        ("quant_cfg = dict(recipe='uniform')", ['bits', "bits='w8a8'"]),
        ("quant_cfg = dict(bits='w8a8')", ["'recipe'", "'rules'", 'minmax']),
        (
            "quant_cfg = dict(recipe='uniform', calibration=dict(num=3))",
            ["'num'", 'num_samples'],
        ),
        ("quant_cfg = 'uniform'", ['expected a dict', "'uniform'"]),
        (
            "quant_cfg = dict(recipe='uniform', bits='w8a8', rules=[dict("
            "match='*', skip=True)])",
            ['quantize nothing'],
        ),
        *(
            (
                "quant_cfg = dict(recipe='reg_ptq', bits='w4a4', pass_args="
                'dict(Reconstruct=dict(losses=[dict('
                f"type='DetectionLoss', {name}={value})])))",
                ['losses[0]', name, f'from 0 to {limit}', str(value)],
            )
            for name, value, limit in (
                ('theta_c', 1.2, 1.1),
                ('theta_c', -0.1, 1.1),
                ('theta_i', 1.5, 1),
            )
        ),
        ('ptq_cfg = dict(resum=True)', ["'resum'", "Did you mean 'resume'?"]),
        ("ptq_cfg = 'resume'", ["ptq_cfg: expected a dict, got 'resume'"]),
        (
            "ptq_cfg = dict(float_eval='no')",
            ["ptq_cfg: float_eval must be True or False, got 'no'"],
        ),
        (
            'ptq_cfg = dict(artefact=5)',
            ['ptq_cfg: artefact must be a string, got 5'],
        ),
        ('model = undefined', ['edited.py', 'undefined']),
    ],
)
def test_bad_config(ptq, edited, text, says, monkeypatch):
    """Each is found before any image is evaluated."""
    monkeypatch.setattr(
        'mmengine.runner.TestLoop.run',
        lambda *_: pytest.fail('tested the float model'),
    )
    refused(ptq(config=edited(text)), *says)


def test_missing_config(ptq, tmp_path):
    refused(ptq(config=tmp_path / 'none.py'), 'none.py', 'does not exist')


# launchers -----------------------------------------------------------------


@pytest.mark.parametrize(
    ('words', 'says'),
    [
        (['dist_ptq.sh'], '0 of 3 arguments given: tools/dist_ptq.sh CONFIG'),
        (['dist_ptq.sh', 'a.py', 'b.pth'], '2 of 3 arguments given'),
        (['dist_ptq.sh', 'a.py', 'b.pth', '--bits'], "got '--bits'"),
        (['dist_ptq.sh', 'a.py', 'b.pth', '0'], "got '0'"),
        (['slurm_ptq.sh'], '0 of 4 arguments given: tools/slurm_ptq.sh PART'),
        (['slurm_ptq.sh', 'p', 'job', 'a.py'], '3 of 4 arguments given'),
    ],
)
def test_launchers(words, says):
    tool, *rest = words
    tool = Path(__file__).parents[2] / 'tools' / tool
    done = subprocess.run(
        ['bash', str(tool), *rest], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr.startswith('error: ') and says in done.stderr
    assert done.stderr.count('\n') == 1 and not done.stdout


# order ---------------------------------------------------------------------

NO_MODEL = "model = dict(type='NotThere')\n"
NO_DATA = "test_dataloader = dict(dataset=dict(ann_file='gone.json'))\n"


def test_checkpoint_is_looked_for_before_a_model_is_built(ptq, edited):
    config = edited(NO_MODEL + NO_DATA)
    refused(ptq(config=config, checkpoint='gone.pth'), 'gone.pth does not ex')


@pytest.mark.parametrize('device', ['0', 'gpu', 'cuda:99'])
def test_device_is_tried_before_a_model_is_built(ptq, edited, device):
    config = edited(NO_MODEL + NO_DATA)
    refused(ptq('--device', device, config=config), repr(device), 'has cpu')
    config = edited(NO_MODEL + f'device = {device!r}\n')
    refused(ptq('--device', '', config=config), repr(device), 'has cpu')


def test_globs_are_matched_before_a_dataset_is_built(ptq, edited):
    rule = RULE.format("match='bbox_head.cls_conv.*', skip=True")
    refused(
        ptq(config=edited(rule + '\n' + NO_DATA)),
        "'bbox_head.cls_conv.*'",
        'bbox_head.cls_convs.0.conv',
    )


def test_checkpoint_is_read_before_a_dataset_is_built(ptq, edited, tmp_path):
    path = tmp_path / 'corrupt.pth'
    path.write_bytes(b'<html>404: not found</html>')
    refused(ptq(config=edited(NO_DATA), checkpoint=path), 'is corrupt or no')


# the terminal --------------------------------------------------------------


def test_terminal_that_has_few_characters(ptq, monkeypatch):
    """It gets the table all the same."""
    out = io.TextIOWrapper(io.BytesIO(), encoding='ascii')
    monkeypatch.setattr(sys, 'stdout', out)
    run = ptq(*QUICK)
    out.flush()
    said = out.buffer.getvalue().decode('ascii')
    assert run.code == 0, run.err
    ratio = run.result['storage_mb']
    ratio = ratio['float'] / ratio['quantized']
    assert f'? {ratio:.2f}' in said and 'note: ' in said


# data ----------------------------------------------------------------------


def test_doubts_are_in_log_and_result(ptq, tiny, tmp_path):
    run = ptq(*QUICK)
    (note,) = (n for n in run.result['notes'] if 'calibration images' in n)
    assert note.startswith('only 2 calibration images') and note in run.log
    for i in range(8):
        image = np.full((64, 64, 3), 20 * i, np.uint8)
        cv2.imwrite(str(tmp_path / f'{i}.png'), image)
    run = ptq(*QUICK, '--calib-num', 8, '--calib-source', tmp_path)
    (note,) = (n for n in run.result['notes'] if 'calibration images' in n)
    assert 'of one colour' in note and run.log.count(note) == 1


def test_empty_calibration_folder(ptq, tmp_path):
    empty = tmp_path / 'empty'
    empty.mkdir()
    refused(ptq(*QUICK, '--calib-source', empty), 'empty', str(empty))


def test_empty_calibration_dataset(ptq, tiny, edited, tmp_path):
    empty = tmp_path / 'empty.json'
    empty.write_text(
        json.dumps(
            dict(
                images=[], annotations=[], categories=[dict(id=1, name='dark')]
            )
        )
    )
    refused(
        ptq(
            *QUICK,
            config=edited(
                f"train_dataloader = dict(dataset=dict(ann_file=r'{empty}'))"
            ),
        ),
        'calibration',
        'empty',
    )


def test_missing_annotations(ptq, edited):
    refused(
        ptq(
            *QUICK,
            config=edited(
                "train_dataloader = dict(dataset=dict(ann_file='gone.json'))"
            ),
        ),
        'calibration dataset',
        'gone.json',
        '--calib-source',
    )
    refused(
        ptq(
            *QUICK,
            config=edited(
                "test_dataloader = dict(dataset=dict(ann_file='gone.json'))"
            ),
        ),
        'test dataset',
        'gone.json',
    )


def test_fewer_images_than_asked(ptq):
    run = ptq('--no-float-eval', '--recipe', 'minmax', '--calib-num', 50)
    assert run.code == 0
    assert '50 calibration images asked for' in run.log
    assert 'only 6' in run.log


@pytest.fixture
def folder(tiny, tmp_path):
    """A folder of four images, of which some are broken."""

    def make(*broken):
        path = tmp_path / 'images'
        path.mkdir()
        for i in range(4):
            data = (tiny.root / 'train' / f'{i}.png').read_bytes()
            (path / f'{i}.png').write_bytes(data[:20] if i in broken else data)
        return path

    return make


def test_unreadable_images_are_named(ptq, folder):
    path = folder(1, 3)
    run = ptq('--no-float-eval', '--calib-source', path)
    assert run.code == 0
    notes = [n for n in run.result['notes'] if 'cannot be read' in n]
    assert [Path(n.split(':')[0]).name for n in notes] == ['1.png', '3.png']
    # each is told once, whoever reads it
    assert run.log.count('cannot be read, skipped') == 2


def test_unreadable_images_change_nothing(ptq, folder, tmp_path):
    """The rest calibrates as if the broken ones had not been there."""
    path = folder(1)
    with_broken = ptq('--no-float-eval', '--calib-source', path)
    (path / '1.png').unlink()
    without = ptq(
        '--no-float-eval', '--calib-source', path, work=tmp_path / 'without'
    )
    a, b = (
        torch.load(r.artefact, weights_only=True)['tensors']
        for r in (with_broken, without)
    )
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_no_readable_image(ptq, folder):
    path = folder(0, 1, 2, 3)
    refused(
        ptq('--no-float-eval', '--calib-source', path),
        'none of the 4 calibration images',
        str(path),
    )


def test_class_count_of_data(ptq, edited):
    refused(
        ptq(
            *QUICK,
            config=edited('model = dict(bbox_head=dict(num_classes=7))'),
        ),
        '3 classes',
        'bbox_head.num_classes=7',
    )


def test_cache_too_small_for_a_step(ptq, edited):
    """The message says what would do, and with that it does."""

    def run(cache):
        return ptq(
            '--no-float-eval',
            config=edited(
                "quant_cfg = dict(recipe='qdrop', bits='w4a4', pass_args="
                'dict(Reconstruct=dict(iters=1)), calibration='
                f"dict(num_samples=3, cache='{cache}'))"
            ),
        )

    message = refused(
        run('10KiB'), '10240 bytes', 'one batch of backbone.', 'batch_size'
    )
    enough = message.split("cache='")[1].split("'")[0]
    assert enough == '1MiB'
    assert run(enough).code == 0


# the work dir --------------------------------------------------------------


def test_work_dir_not_writable(ptq, tmp_path):
    (tmp_path / 'file').write_text('')
    refused(
        ptq(*QUICK, work=tmp_path / 'file' / 'work'),
        'not writable',
        '--work-dir',
    )
    refused(ptq(*QUICK, work=tmp_path / 'file'), 'not writable')


@pytest.fixture
def full_disk(monkeypatch):
    """Saving the artefact stops half way."""
    save = torch.save

    def broken(obj, path, *args, **kwargs):
        save(obj, path)
        if Path(path).name != 'quantized.pth':
            return
        data = Path(path).read_bytes()
        Path(path).write_bytes(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, 'No space left on device')

    return lambda: monkeypatch.setattr(torch, 'save', broken)


def test_full_disk_keeps_the_old_artefact(ptq, full_disk, monkeypatch):
    first = ptq(*QUICK)
    full_disk()
    second = ptq(*QUICK, '--bits', 'w4a4')
    refused(second, 'No space left', 'unchanged', '--work-dir')
    assert second.digest == first.digest
    left = [p.name for p in first.work.iterdir() if '.save' in p.name]
    assert not left
    monkeypatch.undo()
    assert ptq(checkpoint=first.artefact).code == 0
    # with space again, what was calibrated is not lost
    monkeypatch.setattr(
        CalibLoop,
        'predict',
        lambda self, start, after: pytest.fail('calibrated again'),
    )
    assert ptq(*QUICK, '--bits', 'w4a4', '--resume').code == 0


def test_interrupt(ptq, monkeypatch, request):
    """Ctrl-C in the middle: exit code 130, and --resume goes on from there."""
    # the bar is drawn in terminals
    monkeypatch.setenv('FORCE_COLOR', '1')
    # pytest may itself run where a shell has Ctrl-C ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    # a report reads four more images
    options = (
        *('--no-float-eval', '--no-report', '--calib-num', 6),
        *('--recipe', 'minmax'),
    )
    whole = ptq(*options)
    load, images = CalibrationImages.load, []

    def interrupted(self, i):
        images.append(self.indices[i])
        # the survey reads one more, and all are looked at
        if len(images) == 1 + 6 + 4:
            signal.raise_signal(signal.SIGINT)
        return load(self, i)

    monkeypatch.setattr(CalibrationImages, 'load', interrupted)
    work = whole.work.parent / 'stopped'
    stopped = ptq(*options, work=work)
    assert stopped.code == 130
    assert '--resume' in stopped.err
    # the line of the stage says how far it came
    assert '3/6' in stopped.err and '6/6' not in stopped.err
    assert 'Traceback' not in stopped.err
    assert not stopped.artefact.exists()
    images[:] = [None] * 99
    again = ptq(*options, '--resume', work=work)
    assert again.code == 0
    assert len(images) - 99 == 1 + 6 + 6 - 3
    assert again.digest == whole.digest


def test_errors_do_not_hide_in_the_loop(ptq, monkeypatch):
    """A PTQError out of calibration arrives as it is."""

    def broken(*_, **__):
        raise PTQError('told once')

    monkeypatch.setattr(CalibLoop, 'predict', broken)
    refused(ptq(*QUICK), 'told once')
