# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What the picture of DETR's steps shows."""

import json
from pathlib import Path

from tools.accuracy.suites import SUITES
from tools.docs.make_detr_picture import BITS, PARTS, STEPS, bars, draw

ROOT = Path(__file__).parents[3]


def _cell(recipe, quantized, bits=BITS, seed=0):
    return dict(
        recipe=recipe, bits=bits, seed=seed, quantized=quantized, float=0.5
    )


def test_bars_by_hand():
    last = 'gptq_codebook_attention'
    cells = [
        _cell('gptq', 0.3),
        _cell('uniform', 0.2),
        _cell(last, 0.4),
        _cell(f'{last}_weights_8', 0.45),
        _cell('uniform', 0.1, 'w3a3'),
        _cell(last, 0.3, seed=1),
    ]
    whole, (steps, parts) = bars(cells)
    assert whole == 0.5
    # in the order of the steps, whatever was measured first
    assert [value for _, value in steps] == [0.2, 0.3, 0.4]
    assert parts == [('nothing', 0.4), ('all weights', 0.45)]


def test_every_cell_of_its_width_is_drawn():
    drawn = {*STEPS, *(f'gptq_codebook_attention_{p}_8' for p in PARTS)}
    assert drawn == {cell[1] for cell in SUITES['detr'] if cell[2] == BITS}


def test_picture_is_up_to_date(tmp_path):
    cells = json.loads((ROOT / 'docs/results/detr.json').read_text())
    draw(cells, tmp_path / 'detr.svg')
    kept = (ROOT / 'docs/pictures/detr.svg').read_text()
    assert (tmp_path / 'detr.svg').read_text() == kept
