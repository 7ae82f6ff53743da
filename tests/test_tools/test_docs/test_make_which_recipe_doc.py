# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The page that says which recipe to take."""

from pathlib import Path

import pytest

from tools.docs.make_which_recipe_doc import (
    CONVOLUTIONAL,
    TRANSFORMER,
    attention,
    best_recipe,
    document,
    losses,
    minutes,
    table,
)

ROOT = Path(__file__).parents[3]


def cells_of(bits, recipe, lost, seconds):
    """A cell of each detector; the last is that of the transformer."""
    return [
        dict(
            detector=detector,
            recipe=recipe,
            bits=bits,
            float=0.6,
            quantized=0.6 - one,
            seconds=seconds * (i + 1),
        )
        for i, (detector, one) in enumerate(
            zip((*CONVOLUTIONAL, TRANSFORMER), lost, strict=True)
        )
    ]


def test_page_is_up_to_date(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert document() == Path('docs/which_recipe.md').read_text()


def test_losses_by_hand():
    cells = [
        *cells_of('w4a4', 'uniform', (0.1, 0.1, 0.2, 0.2, 0.5), 10),
        *cells_of('w4a4', 'qdrop', (0.1, 0.0, 0.1, 0.0, 0.3), 70),
        *cells_of('w4a4', 'brecq', (0.0, 0.0, 0.0, 0.0, 0.0), 1)[:-1],
    ]
    found = losses(cells)
    assert set(found) == {('w4a4', 'uniform'), ('w4a4', 'qdrop')}
    assert found['w4a4', 'uniform'] == pytest.approx(
        dict(loss=0.15, detr=0.5, times=1)
    )
    assert found['w4a4', 'qdrop'] == pytest.approx(
        dict(loss=0.05, detr=0.3, times=7)
    )


def test_what_attention_loses():
    cells = [
        *cells_of('w4a8', 'gptq', (0.1, 0.1, 0.1, 0.1, 0.2), 1),
        *cells_of('w4a4', 'gptq', (0.1, 0.1, 0.1, 0.1, 0.5), 1),
        *cells_of('w4a4', 'gptq_attention', (0, 0, 0, 0, 0.25), 1)[4:],
        *cells_of('w4a8', 'gptq_attention', (0, 0, 0, 0, 0.125), 1)[4:],
    ]
    assert attention(cells) == (
        '0.250 at w4a4 instead of 0.500,\n  0.125 at w4a8 instead of 0.200'
    )


def test_minutes_by_hand():
    cells = [
        *cells_of('w4a4', 'gptq', (0.1, 0.3, 0.2, 0.2, 0.5), 60),
        *cells_of('w4a4', 'uniform', (0.2, 0.2, 0.2, 0.6, 0.5), 6),
        *cells_of('w4a4', 'recon', (0.0, 0.1, 0.0, 0.0, 0.4), 600)[::2],
        # compared on one detector, the others would say little
        *cells_of('w4a4', 'qdrop', (0.1, 0.1, 0.0, 0.0, 0.4), 600)[:2],
        *cells_of('w2a4', 'gptq', (0.1, 0.1, 0.2, 0.2, 0.5), 60)[:2],
    ]
    head, _, *rows = minutes(cells)
    assert head.count('|') == 7
    # on two detectors and the transformer, as one has no others
    assert rows == [
        '| w4a4 | 0.3 | `uniform` | 0.200 | 0.500 | faster-rcnn, retinanet |',
        '| w4a4 | 3.0 | `gptq` | 0.150 | 0.500 | faster-rcnn, retinanet |',
        '| w4a4 | 30.0 | `recon` | 0.000 | 0.400 | faster-rcnn, retinanet |',
        '| w2a4 | 1.5 | `gptq` | 0.100 |  | retinanet, yolof |',
    ]


def test_the_best_counts_all_detectors():
    def one(loss, detr):
        return dict(loss=loss, detr=detr, times=1)

    found = {
        ('w4a4', 'a'): one(0.1, 0.4),  # sum 0.8
        ('w4a4', 'b'): one(0.15, 0.1),  # sum 0.7
        ('w2a4', 'a'): one(0.3, 0.4),  # 1.6
        ('w2a4', 'b'): one(0.35, 0.1),  # 1.5
    }
    assert best_recipe(found) == 'b'


def test_rows():
    def one(loss):
        return dict(loss=loss, detr=0.25, times=11.6)

    found = {
        (bits, recipe): one(loss)
        for bits in ('w4a8', 'w4a4', 'w3a3', 'w2a4')
        for recipe, loss in (('uniform', 0.2), ('best', 0.1), ('a', 0.3))
    }
    zoo = [
        dict(
            detector=d,
            recipe='uniform',
            bits='w8a8',
            float={'coco/bbox_mAP': 0.6},
            quantized={'coco/bbox_mAP': 0.59},
        )
        for d in (*CONVOLUTIONAL, TRANSFORMER)
    ]
    rows = table(found, zoo)[2:]
    assert rows[0] == '| w8a8 | `uniform` | 0.010 | 0.010 | 1 |'
    assert rows[1] == '| w4a8 | `uniform` | 0.200 | 0.250 | 12 |'
    assert rows[2] == '| w4a8 | `best` | 0.100 | 0.250 | 12 |'
    assert len(rows) == 9
