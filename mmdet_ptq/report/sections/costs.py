# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Size, arithmetic and time."""

from collections.abc import Sequence

from ...cost import mean_bits
from ..charts import bars, budget
from ..files import Run
from ..markup import (
    Html,
    figure,
    grid,
    is_number,
    join,
    num,
    paragraph,
    table,
)
from .words import labels

#: layers whose bits are drawn at most, so that the page stays small
MOST = 1500


def costs(runs: Sequence[Run]) -> Html:
    """Size and arithmetic, before and after."""
    known = [run for run in runs if run.part('cost')]
    if not known:
        return paragraph('The run ended before costs were known.', cls='none')
    head = ['', *(_heads(runs))]
    rows = [
        ['parameters (MB)', *_pairs(runs, ('storage_mb',), 1, ',.2f')],
        ['bit operations (T)', *_pairs(runs, ('cost', 'bops'), 1e12, ',.4g')],
        ['products, MACs (G)', *_products(runs)],
    ]
    shape = ' × '.join(map(str, (known[0].part('cost', 'input') or [])[2:]))
    words = paragraph(
        f'Of one image of {shape} pixels. A bit operation is a product of '
        'one bit by one bit: MACs times the bits of both operands. '
        'Arithmetic is simulated; this is no measured speed.'
    )
    charts = [_parts(name, run) for name, run in _one(runs, known)]
    charts += [
        _budget(name if len(runs) > 1 else '', run)
        for name, run in zip(labels(runs), runs, strict=True)
        if _has_elements(run)
    ]
    return join([words, table(head, rows), grid(*charts)])


def _heads(runs: Sequence[Run]) -> list[str]:
    if len(runs) == 1:
        return ['float', 'quantized', 'ratio']
    return [
        head
        for name in labels(runs)
        for head in (f'{name}: float', 'quantized', 'ratio')
    ]


def _pairs(
    runs: Sequence[Run], keys: Sequence[str], unit: float, form: str
) -> list[str]:
    found = []
    for run in runs:
        before, after = (
            run.part(*keys, side) for side in ('float', 'quantized')
        )
        known = is_number(before) and is_number(after) and after > 0
        found += [
            num(before / unit if is_number(before) else before, form),
            num(after / unit if is_number(after) else after, form),
            f'÷ {before / after:.2f}' if known else '–',
        ]
    return found


def _products(runs: Sequence[Run]) -> list[str]:
    found = []
    for run in runs:
        macs = run.part('cost', 'macs')
        text = num(macs / 1e9 if is_number(macs) else macs, ',.4g')
        found += [text, text, '']
    return found


def _one(runs: Sequence[Run], known: Sequence[Run]) -> list[tuple[str, Run]]:
    """A run for each different arithmetic: recipes share it mostly."""
    seen, found = [], []
    for name, run in zip(labels(runs), runs, strict=True):
        parts = run.part('cost', 'parts')
        if run in known and parts not in seen:
            seen.append(parts)
            found.append((name, run))
    return found


def _parts(name: str, run: Run) -> Html:
    parts = run.part('cost', 'parts') or {}
    rows = [
        (part, macs / 1e9) for part, macs in parts.items() if is_number(macs)
    ]
    rows.sort(key=lambda row: -row[1])
    if not rows:
        return figure('Where products are.', 'There are none.')
    total = sum(macs for _, macs in rows) or 1
    see = f'{rows[0][0]} has {100 * rows[0][1] / total:.0f} % of them.'
    title = 'Where products are.'
    return figure(title, see, bars(title, rows, 'MACs (G)'))


def _has_elements(run: Run) -> bool:
    """Whether it is known how many numbers each layer reads, of not too many.

    Runs of earlier versions do not say it.
    """
    layers = run.part('cost', 'layers') or {}
    return 0 < len(layers) <= MOST and all(
        'elements' in one for one in layers.values()
    )


def _budget(name: str, run: Run) -> Html:
    title = f'Where bits go{f", {name}" if name else ""}.'
    weights, inputs = mean_bits(run.part('cost'))
    see = (
        f'A bar is as high as its bits and as wide as its share: '
        f'{weights:.2f} bits a weight and {inputs:.2f} an input on average, '
        'float counted as 32.'
    )
    return figure(title, see, budget(run.part('cost'), title))


def time(runs: Sequence[Run]) -> Html:
    """Seconds of each stage."""
    found = []
    for name, run in zip(labels(runs), runs, strict=True):
        rows = [
            (stage, value)
            for stage, value in (run.part('seconds') or {}).items()
            if is_number(value)
        ]
        title = f'Time of each stage{f", {name}" if len(runs) > 1 else ""}.'
        if not rows:
            found.append(figure(title, 'None was measured.'))
            continue
        total = sum(value for _, value in rows)
        longest, most = max(rows, key=lambda row: row[1])
        see = (
            f'{num(total, ",.0f")} seconds in all, {num(most, ",.0f")} of '
            f'them for {longest}.'
        )
        found.append(figure(title, see, bars(title, rows, 'seconds')))
    return grid(*found)
