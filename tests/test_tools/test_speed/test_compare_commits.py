# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
from types import SimpleNamespace

from tools.speed.compare_commits import options_of, table


def test_the_least_ratio_of_each_side_counts():
    old = [dict(calibrate=3.0, forward=1.5), dict(calibrate=2.0, forward=1.7)]
    new = [dict(calibrate=2.5, forward=1.2), dict(calibrate=9.0, forward=1.1)]
    rows = table({'YOLOF R50': [old, new]}).splitlines()
    assert rows[-1] == '| YOLOF R50 | 2.000 | 2.500 | 1.500 | 1.100 |'


def test_older_commits_get_options_that_they_know():
    given = dict(size=[320], images=4, threads=1, device='cpu')
    words = options_of(SimpleNamespace(**given))
    assert words == ['--size', '320', '--images', '4', '--threads', '1']
    given |= dict(size=[64, 96], device='cuda')
    words = options_of(SimpleNamespace(**given))
    assert words[:3] == ['--size', '64', '96']
    assert words[-2:] == ['--device', 'cuda']
