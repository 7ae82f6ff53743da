# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Cells of the transformer recipes."""

import json
from pathlib import Path

from tools.docs.make_ptq_configs import DETECTORS, RECIPES
from tools.docs.transformer_tables import NAMES, later_table, recipe_table

ROOT = Path(__file__).parents[3]
DATA = json.loads(
    (ROOT / 'docs/results/published_transformers.json').read_text()
)


class Runs:
    """One run of one detector."""

    def run(self, detector, bits, variant):
        if (detector, bits, variant) == ('b', 'w6a6', 'adalog'):
            return dict(
                quantized={'coco/bbox_mAP': 0.4567, 'coco/segm_mAP': 0.4}
            )
        return None

    def of(self, detector):
        metrics = {'coco/bbox_mAP': 0.5} if detector == 'b' else {}
        return [dict(float=metrics)]


def test_published_and_measured(monkeypatch):
    monkeypatch.setitem(DETECTORS, 'a', ('w4a4', 'w6a6'))
    table = dict(
        columns=['a', 'b'],
        rows=[
            ['float', 'float', [[46.0, 41.6], [48.5, 43.3]]],
            ['AdaLog', 'w6a6', [[45.4, 41.3], None]],
            ['No such recipe', 'w4a4', [[1.0, 2.0], None]],
        ],
    )
    head, rows = recipe_table(table, Runs())
    assert head == ['method', 'bits']
    assert rows[0] == ['float', '', '46.0 41.6 /', '48.5 43.3 / 50.0']
    assert ['AdaLog', 'w6a6', '45.4 41.3 /', '– / 45.7 40.0'] in rows
    # what cannot be run has no slash
    assert rows[-1] == ['No such recipe', 'w4a4', '1.0 2.0', '–']
    assert len(rows) == 2 + 2 * len(RECIPES)


def test_the_data_are_whole():
    """As many numbers as detectors, each of them an AP, float the most."""
    assert set(RECIPES) <= set(NAMES)
    assert set(DATA['detectors']) == set(DETECTORS)
    for key, size in (('swin', 2), ('detr', 1)):
        table = DATA[key]
        best = table['rows'][0][2]
        for method, bits, values in [*table['rows'], *table.get('later', ())]:
            assert method in {'float', *NAMES.values()} or 'later' in table
            assert len(values) == len(table['columns']) == len(best)
            for one, most in zip(values, best, strict=True):
                assert len(one) == size and bits
                assert all(0 < a <= b for a, b in zip(one, most, strict=True))
    assert len(later_table(DATA['swin'])) == len(DATA['swin']['later'])
