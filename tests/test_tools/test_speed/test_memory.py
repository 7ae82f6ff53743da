# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What of a process's memory counts."""

import mmap
from pathlib import Path

import pytest

from tools.speed import memory

MIB = 2**20


def test_growth_by_hand():
    few = {'held': 10 * MIB, 'beside a': 500 * MIB, 'beside b': 400 * MIB}
    many = {
        'held': 60 * MIB,
        'cached': 300 * MIB,
        'sample': 5 * MIB,
        'beside a': 503 * MIB,
        'beside b': 412 * MIB,
    }
    assert memory.growth(many, few, 64 * MIB) == dict(
        over_bound=1.125,  # (60 + 12) / 64
        held_mib=60.0,
        beside_mib=dict(a=3.0, b=12.0),
        bound_mib=64.0,
        cached_mib=300.0,
        sample_mib=5.0,
    )


def test_anonymous_memory():
    status = 'VmRSS:\t  99 kB\nRssAnon:\t   12 kB\nRssFile:\t 3 kB\n'
    assert memory.anonymous(status) == 12 * 1024
    with pytest.raises(RuntimeError, match='--no-memory'):
        memory.anonymous('VmRSS:\t 99 kB\n')


def test_peak_is_that_of_all_samples():
    values = iter([3, 9, 4])
    peak = memory.Peak(lambda: dict(x=next(values)), interval=60)
    with peak:
        peak.sample()
    assert peak.top == dict(x=9)


def test_anonymous_memory_is_seen():
    def read():
        text = Path('/proc/self/status').read_text()
        return dict(x=memory.anonymous(text))

    with memory.Peak(read) as peak:
        before = peak.top['x']
        # asked of the system: malloc may have 64 MiB left from other tests
        with mmap.mmap(-1, 64 * MIB, flags=mmap.MAP_PRIVATE) as block:
            for _ in range(64):
                block.write(bytes(MIB))
            peak.sample()  # the thread may not get a turn in between
    assert 60 * MIB < peak.top['x'] - before < 80 * MIB
