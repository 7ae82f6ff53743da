# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The activation cache keeps what it is given, within its bound."""

import io
import tempfile
import threading

import pytest
import torch
from seeded import seeded

from mmdet_ptq.calibration import ActivationCache, Session
from mmdet_ptq.calibration.ahead import Ahead
from mmdet_ptq.calibration.cache import room_on
from mmdet_ptq.errors import CalibrationError, QuantConfigError
from mmdet_ptq.quant_cfg import parse_quant_cfg


def tree(seed=0):
    generator = seeded(seed)
    return {
        'a': [torch.randn(3, 5, generator=generator), None, 'text'],
        'b': (torch.arange(7), torch.tensor([True, False])),
        'c': torch.randn(4, 4, generator=generator).t(),
        'd': torch.randn(0, 4),
    }


def same(x, y):
    assert x['a'][1:] == y['a'][1:] == [None, 'text']
    for a, b in (
        (x['a'][0], y['a'][0]),
        *zip(x['b'], y['b'], strict=True),
        (x['c'], y['c']),
        (x['d'], y['d']),
    ):
        assert a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize('limit', [10**6, 0, 100])
def test_gives_back_what_it_took(tmp_path, limit):
    cache = ActivationCache(limit, tmp_path)
    given = [tree(i) for i in range(3)]
    kept = [cache.keep(one) for one in given]
    for one, entry in zip(given, kept, strict=True):
        same(cache.fetch(entry), one)
    assert cache.in_memory <= limit
    size = sum(
        t.numel() * t.element_size()
        for one in given
        for t in (one['a'][0], *one['b'], one['c'])
    )
    assert cache.in_memory + cache.on_disk == size
    cache.close()


def test_keeps_a_copy(tmp_path):
    cache = ActivationCache(10**6, tmp_path)
    x = torch.ones(3)
    entry = cache.keep(x)
    x.zero_()
    assert torch.equal(cache.fetch(entry), torch.ones(3))


def test_room_is_used_again(tmp_path):
    cache = ActivationCache(400, tmp_path)
    for i in range(20):
        first = cache.keep(torch.full((100,), float(i)))
        second = cache.keep(torch.full((100,), -float(i)))
        assert cache.in_memory == cache.on_disk == 400
        assert float(cache.fetch(second)[7]) == -i
        cache.drop([first, second])
        assert cache.in_memory == cache.on_disk == 0
    assert cache.file_size == 400
    assert list(tmp_path.iterdir()) == []


def test_gaps_of_all_sizes(tmp_path):
    """What comes into a gap leaves its neighbours as they are."""
    cache = ActivationCache(0, tmp_path)
    generator = seeded(0)
    held = {}
    for i in range(200):
        size = int(torch.randint(1, 40, (), generator=generator))
        tensor = torch.full((size,), i, dtype=torch.int16)
        held[i] = (tensor, cache.keep(tensor))
        if i % 3:
            oldest = list(held)[(7 * i) % len(held)]
            cache.drop(held.pop(oldest)[1])
        for tensor, entry in held.values():
            assert torch.equal(cache.fetch(entry), tensor)
        assert cache.on_disk == sum(2 * len(x) for x, _ in held.values())
    cache.close()
    assert cache.on_disk == cache.in_memory == 0


def test_a_bound_that_no_step_fits(tmp_path):
    cache = ActivationCache(1000, tmp_path)
    cache.check_fits(1000, 'a batch')
    with pytest.raises(QuantConfigError, match=r"1001 bytes of a .*'1MiB'"):
        cache.check_fits(1001, 'a batch')
    with pytest.raises(QuantConfigError, match=r"at least cache='3MiB'"):
        cache.check_fits(2 * 2**20 + 1, 'a batch')
    cache.check_fits(10, 'a batch')
    assert cache.step == 2 * 2**20 + 1


@pytest.mark.parametrize('limit', [10**6, 0])
def test_half_precision_saturates(tmp_path, limit):
    cache = ActivationCache(limit, tmp_path, 'float16')
    x = torch.tensor([1.0, 1e6, -1e6, 1 / 3])
    found = cache.fetch(cache.keep(x))
    assert found.dtype == torch.float32
    assert cache.in_memory + cache.on_disk == 8
    torch.testing.assert_close(
        found, torch.tensor([1.0, 65504.0, -65504.0, 1 / 3]), rtol=1e-3, atol=0
    )
    whole = torch.arange(5)
    assert torch.equal(cache.fetch(cache.keep(whole)), whole)


def test_exact_values_are_not_halved(tmp_path):
    cache = ActivationCache(10**6, tmp_path, 'float16')
    x = torch.tensor([1e-12, 1e12])
    assert torch.equal(cache.fetch(cache.keep(x, exact=True)), x)
    assert cache.in_memory == 8


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(
        tempfile, 'TemporaryFile', lambda **_: io.FileIO('/dev/full', 'w')
    )
    cache = ActivationCache(0, tmp_path)
    with pytest.raises(CalibrationError, match=r'No space.*cache_dtype'):
        cache.keep(torch.ones(1))


def test_a_session_knows_its_open_caches():
    config = parse_quant_cfg(dict(recipe='uniform', bits='w8a8'))
    session = Session(None, None, None, config, None)
    with session.cache() as one, pytest.raises(KeyError), session.cache():
        assert len(session.caches) == 2 and session.caches[0] is one
        raise KeyError
    assert session.caches == []


def test_a_device_first_then_memory_then_disk(tmp_path):
    cache = ActivationCache(400, tmp_path, room=lambda _: 450)
    kept = [cache.keep(torch.full((100,), float(i))) for i in range(3)]
    # what is small still finds room on the device
    kept.append(cache.keep(torch.full((10,), 3.0)))
    sizes = cache.on_device, cache.in_memory, cache.on_disk
    assert sizes == (440, 400, 400)
    for i, entry in enumerate(kept):
        assert set(cache.fetch(entry).tolist()) == {i}
    cache.drop(kept[0])
    assert cache.on_device == 40
    again = cache.keep(torch.full((100,), 7.0))
    assert cache.on_device == 440 and cache.on_disk == 400
    cache.drop([again, *kept])
    sizes = cache.on_device, cache.in_memory, cache.on_disk
    assert sizes == (0, 0, 0)


def test_a_cpu_is_no_device_of_its_own():
    assert room_on(torch.device('cpu')) == 0


@pytest.mark.parametrize('limit', [10**6, 0, 100])
def test_what_was_announced(tmp_path, limit):
    """Is what is fetched, also of entries that are new under an old name."""
    cache = ActivationCache(limit, tmp_path, ahead=Ahead)
    given = [tree(i) for i in range(4)]
    kept = [cache.keep(one) for one in given]
    for step in range(6):
        cache.prefetch(kept[(step + 1) % 4])
        same(cache.fetch(kept[step % 4]), given[step % 4])
        if step == 3:
            cache.drop(kept[0])
            given[0] = tree(9)
            kept[0] = cache.keep(given[0])
    cache.prefetch([])
    cache.drop(kept)
    assert cache.in_memory == cache.on_disk == 0
    cache.close()


def test_reading_ahead_while_writing(tmp_path):
    """Both move in the same file."""
    cache = ActivationCache(0, tmp_path, ahead=Ahead)
    kept = [cache.keep(torch.full((5000,), float(i))) for i in range(40)]
    for i in range(40):
        cache.prefetch(kept[i:])
        cache.keep(torch.full((5000,), -1.0))
        assert set(cache.fetch(kept[i]).tolist()) == {i}
    cache.close()


def test_a_cpu_announces_nothing(tmp_path):
    cache = ActivationCache(0, tmp_path)
    entry = cache.keep(torch.ones(3))
    before = threading.active_count()
    cache.prefetch(entry)
    assert threading.active_count() == before
    assert torch.equal(cache.fetch(entry), torch.ones(3))
