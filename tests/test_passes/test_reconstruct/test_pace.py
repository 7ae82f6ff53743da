# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""How long a reconstruction takes, as it is told."""

from types import SimpleNamespace

import pytest
import torch
from reconstruct_model import INIT, LEARN, RULES, UNITS, Net, batches

from mmdet_ptq.calibration import Batches
from mmdet_ptq.engine.quantize import run_quantization
from mmdet_ptq.passes.reconstruct import pace as pace_module
from mmdet_ptq.passes.reconstruct.pace import Pace, duration, peak_memory
from mmdet_ptq.quant_cfg import Calibration, parse_quant_cfg


@pytest.fixture
def clock(monkeypatch):
    """A time to set, and the lines that are logged."""
    found = SimpleNamespace(now=0.0, lines=[])
    monkeypatch.setattr(pace_module.time, 'perf_counter', lambda: found.now)
    monkeypatch.setattr(
        pace_module, 'print_log', lambda line, *_: found.lines.append(line)
    )
    return found


def session(told):
    return SimpleNamespace(
        progress=lambda *args: told.append(args),
        device=torch.device('cpu'),
        config=SimpleNamespace(calibration=Calibration(cache='3GiB')),
    )


def run(clock, k, iters, step, before=5.0, first=2.0, units='abc'):
    """One unit: 5 s to gather what it sees, a first step of 2 s."""
    told = []
    pace = Pace(session(told), list(units), iters)
    pace.unit(k)
    clock.now += before
    for it in range(iters):
        pace.step(k, it)
        clock.now += step if it else first
    return told


def test_one_line_from_a_few_steps(clock):
    told = run(clock, 1, 200, 0.5)
    # gathering and the first step, then 200 steps at half a second; twice
    assert 2 * (7 + 200 * 0.5) == 214
    (line,) = clock.lines
    assert line.startswith(
        'reconstruction: about 4 min for 2 units of 200 steps, if all are '
        'like b (500 ms a step); '
    )
    assert "GiB of memory so far, calibration.cache='3GiB'" in line
    assert told[0] == told[1] == ('reconstruction', 'b', 1.0, 3)
    assert told[-1] == ('reconstruction', 'b', 1 + 199 / 200, 3)
    assert len(told) == 201


@pytest.mark.parametrize(('iters', 'step'), [(200, 0.01), (11, 60.0)])
def test_no_line_for_what_is_short_or_over(clock, iters, step):
    """Nor where there are no steps to time."""
    run(clock, 0, iters, step)
    assert clock.lines == []


def test_the_line_is_told_once(clock):
    pace = Pace(session([]), ['a', 'b'], 100)
    for k in (0, 1):
        pace.unit(k)
        for it in range(100):
            pace.step(k, it)
            clock.now += 1
    assert len(clock.lines) == 1


@pytest.mark.parametrize(
    ('seconds', 'says'),
    [(50.4, '50 s'), (119, '2 min'), (5999, '100 min'), (9000, '2.5 h')],
)
def test_durations(seconds, says):
    assert duration(seconds) == says


def test_memory_is_that_of_this_process():
    before = peak_memory(torch.device('cpu'))
    assert before > 50 * 2**20
    held = torch.ones(2**28 // 4)
    assert peak_memory(torch.device('cpu')) >= before
    assert float(held[-1]) == 1


def test_each_step_of_a_run_moves_the_progress():
    model, data, told = Net().eval(), batches(), []
    last = dict(type='Reconstruct', learn=LEARN, iters=4)
    config = parse_quant_cfg(
        dict(bits='w3a4', rules=RULES, passes=[*INIT, last])
    )
    run_quantization(
        model,
        config,
        data[0],
        Batches(model, data),
        lambda *args: told.append(args),
    )
    told = [one[1:] for one in told if one[0] == 'reconstruction']
    assert list(dict.fromkeys(name for name, *_ in told)) == UNITS
    assert {total for *_, total in told} == {len(UNITS)}
    for k, unit in enumerate(UNITS):
        done = [k + it / 4 for it in (0, 0, 1, 2, 3)]
        assert [at for name, at, _ in told if name == unit] == done
