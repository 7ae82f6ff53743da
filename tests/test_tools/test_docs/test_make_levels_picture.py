# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What the picture of the levels shows."""

import pytest
from matplotlib.figure import Figure

from mmdet_ptq.quantizers import (
    BaseQuantizer,
    ChannelGroups,
    InstanceGroupQuantizer,
)
from mmdet_ptq.registry import QUANTIZERS
from tools.docs.make_levels_picture import (
    PANELS,
    draw,
    fit,
    levels,
)


@pytest.mark.parametrize('title', PANELS)
def test_levels_are_what_the_data_become(title):
    x, rows = PANELS[title](4)
    for quantizer in rows.values():
        fit(quantizer, x)
        found = levels(quantizer, len(x))
        assert len(found) == len(x)
        for values, row in zip(found, quantizer(x), strict=True):
            assert values == sorted(values) and len(values) <= 16
            assert set(row.unique().tolist()) <= set(values)


def test_every_quantizer_is_drawn():
    QUANTIZERS.import_from_location()
    drawn = {type(q) for make in PANELS.values() for q in make(4)[1].values()}
    # whose values are those of uniform grids, one for each group
    grouped = {ChannelGroups, InstanceGroupQuantizer}
    assert drawn == set(QUANTIZERS.module_dict.values()) - grouped


def test_a_line_for_each_level():
    axes = Figure().subplots()
    x, rows = PANELS['three channels'](4)
    draw(axes, 'title', x, rows)
    (quantizer,) = rows.values()
    assert isinstance(quantizer, BaseQuantizer)
    at = [[s[0, 0] for s in c.get_segments()] for c in axes.collections]
    want = levels(quantizer, 3)
    assert len(at) == 3
    for lines, values in zip(at, want, strict=True):
        assert lines == pytest.approx(values)
    names = [t.get_text() for t in axes.get_yticklabels()]
    assert names == [f'PowerOfTwo, channel {i}' for i in (1, 2, 3)]
