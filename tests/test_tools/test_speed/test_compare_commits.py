# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
from tools.speed.compare_commits import table


def test_the_least_ratio_of_each_side_counts():
    old = [dict(calibrate=3.0, forward=1.5), dict(calibrate=2.0, forward=1.7)]
    new = [dict(calibrate=2.5, forward=1.2), dict(calibrate=9.0, forward=1.1)]
    rows = table({'YOLOF R50': [old, new]}).splitlines()
    assert rows[-1] == '| YOLOF R50 | 2.000 | 2.500 | 1.500 | 1.100 |'
