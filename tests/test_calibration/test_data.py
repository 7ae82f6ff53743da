# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Images that are read one by one, or one ahead."""

import threading

import pytest

from mmdet_ptq.calibration import CalibrationImages


class Source:
    """Says which images were read; one is broken."""

    def __init__(self, broken=None):
        self.broken = broken
        self.read = []
        self.threads = set()
        self.changed = threading.Condition()

    def __getitem__(self, i):
        with self.changed:
            self.read.append(i)
            self.threads.add(threading.current_thread())
            self.changed.notify_all()
        if i == self.broken:
            raise OSError('truncated')
        return dict(inputs=i)

    def wait_for(self, i):
        with self.changed:
            return self.changed.wait_for(lambda: i in self.read, timeout=10)


def images(source):
    return CalibrationImages(source, [f'{i}.jpg' for i in range(6)], range(6))


@pytest.mark.parametrize('start', [0, 2, 5, 6])
@pytest.mark.parametrize('broken', [None, 3, 5])
def test_the_same_batches_in_the_same_order(start, broken):
    plain, early = images(Source(broken)), images(Source(broken))
    found = list(early.batches(start, ahead=True))
    assert found == list(plain.batches(start))
    assert early.source.read == plain.source.read == [*range(start, 6)]
    assert early.skipped == plain.skipped


def test_the_next_image_is_read_while_one_is_used():
    some = images(Source())
    for i, _ in some.batches(ahead=True):
        if i < 5:
            assert some.source.wait_for(i + 1)
        assert i + 2 not in some.source.read
    assert len(some.source.threads) == 2


def test_a_cpu_reads_when_it_has_time():
    some = images(Source())
    for i, _ in some.batches():
        assert some.source.read == [*range(i + 1)]
    assert some.source.threads == {threading.current_thread()}


def test_a_loop_that_ends_early_ends_the_thread():
    before = threading.active_count()
    batches = images(Source()).batches(ahead=True)
    next(batches)
    batches.close()
    assert threading.active_count() == before
