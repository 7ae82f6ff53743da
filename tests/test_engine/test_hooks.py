# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""When progress is saved, and what its line says in the end."""

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


@pytest.mark.parametrize(
    ('finished', 'line'), [(True, '44/44'), (False, '13/44')]
)
def test_line_that_stays(capsys, finished, line):
    hook = ProgressHook()
    hook.before_calib(None, 44)
    for i in range(13):
        hook.after_calib_iter(None, i)
    hook.after_quantize(None, finished)
    said = capsys.readouterr().err
    counts = [word for word in said.split() if '/' in word]
    assert counts[-1] == line, said
