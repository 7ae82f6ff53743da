# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""When progress is saved, and what its line says in the end."""

import re
from types import SimpleNamespace

import pytest

from mmdet_ptq.engine import hooks as hooks_module
from mmdet_ptq.engine.hooks import CalibrationHook, ProgressHook


def test_progress_is_saved_now_and_then(monkeypatch):
    now, saved = [0.0], []
    monkeypatch.setattr(hooks_module.time, 'monotonic', lambda: now[0])
    hook = CalibrationHook(save_interval=2)
    session = SimpleNamespace(save=lambda: saved.append(now[0]))
    for time in (0.5, 1.9, 2.0, 3.9, 4.5, 6.4, 9.0):
        now[0] = time
        hook.after_calib_iter(SimpleNamespace(session=session), 0)
    assert saved == [2.0, 4.5, 9.0]
    with pytest.raises(ValueError, match='save_interval'):
        CalibrationHook(save_interval=-1)


def runner(lines):
    return SimpleNamespace(logger=SimpleNamespace(info=lines.append))


def test_a_line_a_minute_without_a_terminal(monkeypatch):
    """The time left counts from the first step on."""
    now, lines = [100.0], []
    monkeypatch.setattr(hooks_module.time, 'monotonic', lambda: now[0])
    hook, run = ProgressHook(), runner(lines)

    def tell(time, done, stage='reconstruction', item='neck'):
        now[0] = 100.0 + time
        hook.on_progress(run, stage, item, done, 4)

    tell(0, 0)
    tell(59, 0)
    assert lines == []
    # a minute has gone, and nothing is known of the pace
    tell(60, 0)
    assert lines.pop() == 'reconstruction 0/4 neck: 0:01:00 gone'
    # steps begin: from 80 s to 130 s an eighth of a unit
    tell(80, 0.125)
    tell(119, 0.2)
    assert lines == []
    tell(130, 0.25)
    # 3.75 units to go at 400 s each
    assert lines.pop() == (
        'reconstruction 0/4 neck: 0:02:10 gone, about 0:25:00 left'
    )
    # another stage begins anew
    tell(200, 1, 'task ranges', '')
    assert lines == []
    tell(260, 2, 'task ranges', '')
    assert lines == ['task ranges 2/4: 0:01:00 gone']
    hook.after_quantize(run)


def test_calibration_images_are_told_too(monkeypatch):
    now, lines = [0.0], []
    monkeypatch.setattr(hooks_module.time, 'monotonic', lambda: now[0])
    hook, run = ProgressHook(interval=10), runner(lines)
    hook.before_calib(run, 8)
    for i in range(8):
        now[0] += 4
        hook.after_calib_iter(run, i)
    # images 1 and 3 came at 4 s and 12 s: 4 s each, 5 to go
    assert lines[0] == 'calibration 3/8: 0:00:12 gone, about 0:00:20 left'
    assert len(lines) == 2


@pytest.mark.parametrize(
    ('finished', 'line'), [(True, '44/44'), (False, '13/44')]
)
def test_line_that_stays(capsys, monkeypatch, finished, line):
    # for rich it is a terminal
    monkeypatch.setenv('FORCE_COLOR', '1')
    hook = ProgressHook()
    hook.before_calib(None, 44)
    for i in range(13):
        hook.after_calib_iter(None, i)
    hook.after_quantize(None, finished)
    said = re.sub(r'\x1b\[[0-9;?]*[a-zA-Z]', ' ', capsys.readouterr().err)
    counts = [word for word in said.split() if '/' in word]
    assert counts[-1] == line, said
