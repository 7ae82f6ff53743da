# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What the picture of allocated widths shows."""

import json
from pathlib import Path

import pytest

from tools.docs.make_allocation_picture import draw, mean_widths, read

ROOT = Path(__file__).parents[3]


def _record(tensor, layer, elements, bits):
    return dict(tensor=tensor, layers=[layer], elements=elements, bits=bits)


RECORDS = [
    _record('weight', 'b', 30, 3),
    _record('weight', 'b', 10, 7),
    _record('x', 'b', 10, 5),
    _record('weight', 'a', 5, 6),
]


def test_means_by_hand():
    # (30 * 3 + 10 * 7) / 40, and the order is that of the records
    assert list(mean_widths(RECORDS, True).items()) == [('b', 4), ('a', 6)]
    assert mean_widths(RECORDS, False) == {'b.x': 5}


def test_a_run_without_allocation_is_refused(tmp_path):
    file = tmp_path / 'ptq_result.json'
    file.write_text(json.dumps(dict(recipe='gptq', allocation=[])))
    with pytest.raises(ValueError, match='no bits were allocated'):
        read(tmp_path)
    file.write_text(json.dumps(dict(recipe='f_lbq_dp', allocation=RECORDS)))
    assert read(tmp_path)['weights'] == {'b': 4, 'a': 6}


def test_picture_is_up_to_date(tmp_path):
    runs = json.loads((ROOT / 'docs/results/allocation.json').read_text())
    draw(runs, tmp_path / 'allocation.svg')
    kept = (ROOT / 'docs/pictures/allocation.svg').read_text()
    assert (tmp_path / 'allocation.svg').read_text() == kept
