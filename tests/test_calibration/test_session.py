# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
import logging

import torch
from two_levels import PASSES, RULES, Tiny, batches

from mmdet_ptq.apis import quantize_detector
from mmdet_ptq.calibration import session as session_module


def finished(**calibration):
    cfg = dict(
        bits='w8a8', rules=RULES, passes=PASSES, calibration=calibration
    )
    return quantize_detector(Tiny().eval(), batches(), cfg)


def test_random_numbers_depend_on_seed_and_key_alone():
    one, other = finished(seed=0), finished(seed=1)
    first = torch.rand(4, generator=one.rng(1, 2))
    assert torch.equal(first, torch.rand(4, generator=one.rng(1, 2)))
    for generator in (one.rng(2, 1), other.rng(1, 2)):
        assert not torch.equal(first, torch.rand(4, generator=generator))


def test_cache_keeps_to_the_bound(tmp_path):
    session = finished(cache=400, cache_dtype='float16')
    session.work_dir = tmp_path
    with session.cache() as cache:
        kept = cache.keep([torch.ones(100), torch.ones(300)])
        assert cache.in_memory == 200 and cache.on_disk == 600
        assert torch.equal(cache.fetch(kept)[1], torch.ones(300))
    assert cache.in_memory == cache.on_disk == 0
    assert not list(tmp_path.iterdir())


def test_what_is_exported_is_forgotten_after_an_error():
    session = finished()
    try:
        with session.resumable(lambda: dict(images=3)):
            assert session.export() == dict(images=3)
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert session.export() == {}


def test_time_of_a_stage_adds_up():
    session = finished()
    before = session.seconds['calibration']
    with session.stage('calibration'), session.stage('new'):
        torch.ones(1000).sum()
    assert session.seconds['calibration'] >= before + session.seconds['new']


def test_a_warning_is_in_the_log_and_in_the_notes(monkeypatch):
    session, said = finished(), []
    monkeypatch.setattr(
        session_module, 'print_log', lambda *given: said.append(given)
    )
    session.warn('nothing was changed')
    assert session.notes[-1] == 'nothing was changed'
    assert said == [('nothing was changed', 'current', logging.WARNING)]
