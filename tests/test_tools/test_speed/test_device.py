# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What is told of a device."""

import time

from tools.speed.device import crossings, peak_mb, timed


def test_time_of_a_call():
    assert 0.05 <= timed(lambda: time.sleep(0.05), 'cpu') < 5


def test_a_cpu_waits_for_no_gpu():
    ran = []
    assert crossings(lambda: ran.append(1), 'cpu') == peak_mb('cpu') == {}
    assert not ran  # nothing to profile
