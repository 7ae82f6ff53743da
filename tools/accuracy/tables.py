# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The tables of ``benchmark_accuracy.py``, made from its cells."""

import platform

import torch

from tools.accuracy.suites import VARIANTS, YOLOX


def to_markdown(suite: str, cells: list[dict], command: str) -> str:
    """One table for each width: a row a method, a column a detector."""
    lines = [
        f'# {suite}',
        '',
        f'Box AP (0.50:0.95) on {_images(cells)}. '
        f'Made by `{command}` on {_machines(cells)}, torch '
        f'{torch.__version__}. {_budgets(cells)}',
        '',
    ]
    masked = [c for c in cells if 'mask' in c]
    for bits in dict.fromkeys(c['bits'] for c in cells):
        lines += [f'## {bits}', '', *_table(cells, bits)]
        if any(c['bits'] == bits for c in masked):
            lines += ['Mask AP:', '', *_table(masked, bits, 'mask', 'mask_')]
    return '\n'.join([*lines, *_overall(cells), *_allocations(cells)])


def _allocations(cells: list[dict]) -> list[str]:
    """What bits were allocated, and the distances that were predicted."""
    cells = [c for c in cells if 'budget' in c]
    if not cells:
        return []
    lines = [
        '## Bits that were allocated',
        '',
        'What was spent of each budget, and the distance of the detector '
        'from the float one: as the curves of single tensors add up, as '
        'measured, and with one width everywhere where that fits.',
        '',
        '| bits | detector | method | widths | spent | objective | predicted '
        '| measured | one width | box AP |',
        '|---' * 10 + '|',
    ]
    for c in cells:
        spent = '; '.join(
            f'{b["unit"]} {b["spent"]:.4g} of {b["budget"]:.4g} {b["cost"]}'
            for b in c['budget']
        )
        # the distances are the same in all budgets of a cell
        first = c['budget'][0]
        one = first['uniform']
        lines.append(
            f'| {c["bits"]} | {c["detector"]} | {c["recipe"]} '
            f'| {first["least"]} to {first["most"]} bits | {spent} '
            f'| {first["objective"]} | {first["predicted"]:.3g} '
            f'| {first["measured"]:.3g} '
            f'| {"" if one is None else f"{one:.3g}"} '
            f'| {c["quantized"]:.3f} |'
        )
    return [*lines, '']


def _table(
    cells: list[dict], bits: str, after: str = 'quantized', kind: str = ''
) -> list[str]:
    """A row a method, a column a detector."""
    detectors = list(dict.fromkeys(c['detector'] for c in cells))
    floats = {c['detector']: c[f'{kind}float'] for c in cells}
    lines = [
        '| method | ' + ' | '.join(detectors) + ' | mean |',
        '|---' * (len(detectors) + 2) + '|',
        _row('float', [[floats[d]] for d in detectors]),
    ]
    here = [c for c in cells if c['bits'] == bits]
    for recipe in dict.fromkeys(c['recipe'] for c in here):
        mine = [c for c in here if c['recipe'] == recipe]
        found = [
            [c[after] for c in mine if c['detector'] == d] for d in detectors
        ]
        lines.append(_row(recipe, found))
    return [*lines, '']


def _machines(cells: list[dict]) -> str:
    """What cells were made on; those of before it was noted say less."""
    names = [
        f'{c["machine"]["cpu"]} ({c["machine"]["instructions"]})'
        if 'machine' in c
        else f'{platform.machine()} CPU'
        for c in cells
    ]
    return ' and '.join(dict.fromkeys(names))


def _overall(cells: list[dict]) -> list[str]:
    """How methods compare, where a detector has all of them at a width."""
    methods = list(dict.fromkeys(c['recipe'] for c in cells))
    seeds: dict[tuple, list[float]] = {}
    for c in cells:
        place = c['detector'], c['bits']
        seeds.setdefault((*place, c['recipe']), []).append(c['quantized'])
    means = {key: sum(found) / len(found) for key, found in seeds.items()}
    places = [
        place
        for place in dict.fromkeys(key[:2] for key in means)
        if all((*place, m) in means for m in methods)
    ]
    # variants of a method differ in what they leave float
    differ = VARIANTS.keys() & set(methods)
    if not places or differ or 'uniform' not in methods:
        return []
    lines = [
        '## Over all widths',
        '',
        f'Of {len(places)} places (a detector at a width) where all methods '
        'were run.',
        '',
        '| method | within 0.003 of the best | best | above uniform, at '
        'least |',
        '|---|---|---|---|',
    ]
    for method in methods:
        # three decimals each
        behind = [
            round(
                max(means[(*p, m)] for m in methods) - means[(*p, method)], 4
            )
            for p in places
        ]
        gain = min(
            means[(*p, method)] - means[(*p, 'uniform')] for p in places
        )
        lines.append(
            f'| {method} | {sum(b <= 0.003 for b in behind)} | '
            f'{behind.count(0)} | {gain:.3f} |'
        )
    return [*lines, '']


def _images(cells: list[dict]) -> str:
    """What the detectors were tested on, YOLOX on other images."""
    found = {c['detector'] == YOLOX: c for c in cells}
    parts = []
    if False in found:
        other = found[False].get('images')
        parts.append(
            f'{other["val"]} other images, data/{other["name"]} of '
            f'`python -m tools.data.make_digits --train {other["train"]} '
            f'--val {other["val"]} --seed {other["seed"]} '
            f'--out data/{other["name"]}`'
            if other
            else 'the 320 validation images of the digits set'
        )
    if True in found:
        # so few that rounding alone shows
        of = f', of {YOLOX}' if parts else ''
        parts.append(
            f'the 164 COCO val images of coco_mini{of} (another number of '
            'threads rounds convolutions otherwise, which alone moves AP '
            'here by some thousandths)'
        )
    return ' and '.join(parts)


def _budgets(cells: list[dict]) -> str:
    """What the cells were allowed, and how their spread is meant."""
    found = {
        f'{c["settings"]["images"]} calibration images, '
        f'{c["settings"]["iters"]} steps a unit, the global loss for one '
        f'image in {c["settings"]["global_every"]}.'
        for c in cells
    }
    text = ' '.join(sorted(found))
    if len({c['seed'] for c in cells}) > 1:
        text += ' Mean over seeds ± half of the range.'
    return text


def _row(name: str, columns: list[list[float]]) -> str:
    """Mean over seeds, with the spread where there are several."""
    means = [sum(c) / len(c) if c else None for c in columns]
    texts = []
    for mean, column in zip(means, columns, strict=True):
        text = '' if mean is None else f'{mean:.3f}'
        if len(column) > 1:
            text += f' ± {(max(column) - min(column)) / 2:.3f}'
        texts.append(text)
    whole = (
        '' if None in means else f'{sum(means) / len(means):.3f}'  # type: ignore[arg-type]
    )
    return '| ' + ' | '.join([name, *texts, whole]) + ' |'
