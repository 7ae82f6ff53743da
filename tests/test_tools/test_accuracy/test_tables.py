# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Tables of the accuracy grid, by hand."""

import platform

from tools.accuracy.tables import to_markdown

BUDGET = dict(iters=7, images=5, global_every=3)


def test_table_of_two_seeds():
    cells = [
        dict(
            detector=d,
            recipe=m,
            bits='w2a4',
            seed=seed,
            float=0.6,
            quantized=ap,
            settings=BUDGET,
        )
        for d, m, seed, ap in (
            ('a', 'x', 0, 0.5),
            ('a', 'x', 1, 0.52),
            ('b', 'x', 0, 0.3),
            ('b', 'x', 1, 0.3),
            ('a', 'y', 0, 0.1),
        )
    ]
    text = to_markdown('name', cells, 'the command')
    assert '| method | a | b | mean |' in text
    assert '| float | 0.600 | 0.600 | 0.600 |' in text
    assert '| x | 0.510 ± 0.010 | 0.300 ± 0.000 | 0.405 |' in text
    assert '| y | 0.100 |  |  |' in text
    assert '5 calibration images, 7 steps a unit' in text


def test_machines_of_cells():
    cell = dict(
        detector='a',
        recipe='x',
        bits='w2a4',
        seed=0,
        float=0.6,
        quantized=0.5,
        settings=BUDGET,
    )
    one, two = (
        dict(cell, machine=dict(cpu=cpu, instructions=found))
        for cpu, found in (('Xeon', 'AVX512'), ('Ryzen', 'AVX2'))
    )
    text = to_markdown('name', [one, two, one], 'the command')
    assert 'on Xeon (AVX512) and Ryzen (AVX2), torch' in text
    # made before machines were noted
    assert f'on {platform.machine()} CPU, torch' in to_markdown(
        'name', [cell], 'the command'
    )


def test_methods_over_all_widths():
    aps = {
        ('a', 'w2a4'): dict(uniform=0.2, x=0.5, y=0.497),
        ('a', 'w4a4'): dict(uniform=0.6, x=0.595, y=0.599),
        ('b', 'w4a4'): dict(uniform=0.1, x=0.3),  # y was not run
    }
    cells = [
        dict(
            detector=d,
            recipe=m,
            bits=bits,
            seed=0,
            float=0.7,
            quantized=ap,
            settings=BUDGET,
        )
        for (d, bits), of_methods in aps.items()
        for m, ap in of_methods.items()
    ]
    text = to_markdown('name', cells, 'the command')
    assert 'Of 2 places' in text
    assert '| uniform | 1 | 1 | 0.000 |' in text
    assert '| x | 1 | 1 | -0.005 |' in text
    assert '| y | 2 | 0 | -0.001 |' in text
    # nothing to compare with
    assert 'Over all' not in to_markdown('name', cells[1:3], 'command')
    # one leaves more float than the other
    pair = [cells[0], dict(cells[0], recipe='attention_float')]
    assert 'Over all' not in to_markdown('name', pair, 'command')


def test_images_of_two_sets():
    cell = dict(
        recipe='x',
        bits='w2a4',
        seed=0,
        float=0.6,
        quantized=0.5,
        settings=BUDGET,
    )
    one, two = (dict(cell, detector=d) for d in ('yolox-nano', 'detr'))
    digits, coco = 'the 320 validation images', 'the 164 COCO val images'
    for cells, there in (
        ([two], (digits,)),
        ([one], (coco,)),
        ([one, two], (digits, coco)),
    ):
        text = to_markdown('name', cells, 'the command')
        assert [t for t in (digits, coco) if t in text] == list(there)
    assert 'of coco_mini, of yolox-nano (' in text


def test_bits_that_were_allocated():
    budget = dict(
        unit='weights',
        cost='mean bits',
        budget=3.5,
        spent=3.49221,
        least=2,
        most=8,
        objective='feature',
        predicted=0.01234,
        measured=0.02,
        uniform=None,
    )
    cell = dict(
        detector='detr',
        recipe='x',
        bits='w4a4',
        seed=0,
        float=0.6,
        quantized=0.5,
        settings=BUDGET,
    )
    text = to_markdown('name', [cell], 'the command')
    assert 'allocated' not in text
    cells = [cell, dict(cell, recipe='y', budget=[budget, budget])]
    text = to_markdown('name', cells, 'the command')
    spent = 'weights 3.492 of 3.5 mean bits'
    assert text.splitlines()[-1] == (
        f'| w4a4 | detr | y | 2 to 8 bits | {spent}; {spent} | feature '
        '| 0.0123 | 0.02 |  | 0.500 |'
    )
