# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Bits, errors and values of each layer, in the order in which they run."""

from collections import Counter
from collections.abc import Sequence

from ..charts import bits_name, grid_histogram, lines, strip
from ..files import Run
from ..markup import (
    Html,
    details,
    figure,
    grid,
    is_number,
    join,
    num,
    paragraph,
    table,
    tag,
)
from .words import absent, labels, with_part

#: layers whose values are drawn
WORST = 6


def bits(runs: Sequence[Run]) -> Html:
    """A map of the network: bits of weights and inputs of each layer."""
    found = []
    for name, run in zip(labels(runs), runs, strict=True):
        layers = _layers(run)
        if not layers:
            found.append(
                paragraph(f'{name}: the run ended before bits were known.')
            )
            continue
        found.append(_map(name if len(runs) > 1 else '', layers))
    return grid(*found)


def _layers(run: Run) -> list[dict]:
    """Layers with bits, parts where they are known."""
    gathered = run.gathered('layers', 'layers')
    if gathered:
        return gathered
    counted = run.part('cost', 'layers') or {}
    return [
        dict(name=name, part=one.get('part', 'network'), bits=one['bits'])
        for name, one in counted.items()
    ]


def _map(name: str, layers: Sequence[dict]) -> Html:
    rows = [
        ('weight', [one['bits'][0] for one in layers]),
        ('input', [one['bits'][1] for one in layers]),
    ]
    title = f'Bits of each layer{f", {name}" if name else ""}.'
    counts = Counter(tuple(one['bits']) for one in layers)
    most, count = counts.most_common(1)[0]
    others = len(layers) - count
    see = (
        f'{count} of {len(layers)} layers multiply {bits_name(most[0])} by '
        f'{bits_name(most[1])}'
    )
    if others:
        rest = [f'{_both(pair)} ({n})' for pair, n in counts.most_common()[1:]]
        see += f'; the {others} others: {", ".join(rest[:5])}'
    names = [str(one['name']) for one in layers]
    svg = strip(title, rows, [one['part'] for one in layers], names)
    return figure(title, see + '.', svg)


def errors(runs: Sequence[Run]) -> Html:
    """SQNR and cosine of the output of each layer."""
    named = with_part(runs, 'layers')
    if not named:
        return join(absent(runs, 'layers'))
    series = [(n, run.gathered('layers', 'layers')) for n, run in named]
    parts = [one['part'] for one in series[0][1]]
    charts = [
        _curves(series, parts, 'sqnr', 'SQNR of outputs.', 'dB'),
        _curves(series, parts, 'cosine', 'Cosine of outputs.', 'cosine'),
        _curves(series, parts, 'weight_sqnr', 'SQNR of weights.', 'dB'),
    ]
    found = [_words(named), grid(*charts)]
    found += [_numbers(n, layers, len(series)) for n, layers in series]
    return join([*found, *absent(runs, 'layers')])


def _words(named: Sequence[tuple[str, Run]]) -> Html:
    run = named[0][1]
    text = (
        f'On {num(run.gathered("layers", "images"), "d")} calibration images '
        'the detector runs float and quantized, and the outputs of each '
        'layer are compared. SQNR is the energy of the float output over that '
        'of the error: 20 dB is an error of 10 %, 10 dB one of 32 %. Errors '
        'of earlier layers are part of it.'
    )
    if not run.gathered('layers', 'aligned'):
        text += (
            ' No adapter covers this detector: behind boxes that it chooses '
            'itself, rows of the two runs may not be the same.'
        )
    return paragraph(text)


def _curves(
    series: Sequence[tuple[str, list[dict]]],
    parts: Sequence[str],
    key: str,
    title: str,
    unit: str,
) -> Html:
    values = [
        (n, [_drawn(one.get(key), unit) for one in ls]) for n, ls in series
    ]
    lowest = [
        (one[key], one['name'])
        for _, layers in series
        for one in layers
        if is_number(one.get(key))
    ]
    if not lowest:
        return figure(title, 'No layer has a value here.')
    value, name = min(lowest)
    form = '.1f' if unit == 'dB' else '.3f'
    tail = f' {unit}' if unit == 'dB' else ''
    see = f'Higher is better; lowest: {name} with {num(value, form)}{tail}.'
    return figure(title, see, lines(title, values, parts, unit))


def _drawn(value: object, unit: str) -> object:
    """A value as the curve has it: without error, it would dwarf the rest."""
    exact = unit == 'dB' and is_number(value) and value >= 100
    return None if exact else value


def _numbers(name: str, layers: Sequence[dict], many: int) -> Html:
    rows = [
        [
            one['name'],
            one['part'],
            _both(one['bits']),
            one['weight'] or 'float',
            ', '.join(map(str, one['inputs'])) or 'float',
            num(one['sqnr'], '.1f'),
            num(one['cosine'], '.4f'),
            num(one['weight_sqnr'], '.1f'),
        ]
        for one in layers
    ]
    head = ['layer', 'part', 'bits', 'weight', 'inputs', 'SQNR (dB)']
    head += ['cosine', 'SQNR of weight (dB)']
    title = f'All {len(layers)} layers'
    title += f', {name}' if many > 1 else ''
    return details(title, table(head, rows, words=5))


def _both(found: Sequence) -> str:
    return ' × '.join(bits_name(b) if is_number(b) else str(b) for b in found)


def values(runs: Sequence[Run]) -> Html:
    """Histograms of weights and inputs on their grids."""
    named = with_part(runs, 'layers')
    found = []
    for name, run in named:
        layers = run.gathered('layers', 'layers')
        body = [
            _histograms(layers, 'weights', 'weight_sqnr', 'Weight of'),
            _histograms(layers, 'acts', 'sqnr', 'Input of'),
        ]
        if any(one.get('others') for one in layers):
            what = 'Second input of'
            body.append(_histograms(layers, 'others', 'sqnr', what))
        title = [tag('h3', name)] if len(named) > 1 else []
        found += [*title, *body]
    if named:
        found.insert(0, _guide())
    return join([*found, *absent(runs, 'layers')])


def _guide() -> Html:
    return paragraph(
        'Columns say where values lie, tall lines where the grid ends, short '
        'ticks which values it has (where it has few). What is outside the '
        'lines is clipped. Where channels have grids of their own, each is '
        'stretched to the same width.'
    )


def _histograms(
    layers: Sequence[dict], key: str, rank: str, what: str
) -> Html:
    known = [one for one in layers if one.get(key)]
    known.sort(key=lambda one: one[rank] if is_number(one.get(rank)) else 1e9)
    if not known:
        return paragraph(f'{what} a layer: none is quantized.')
    drawn = []
    for one in known[:WORST]:
        found = one[key]
        title = f'{what} {one["name"]}.'
        clipped = (
            num(100 * found['clipped'], '.2g')
            if is_number(found['clipped'])
            else '–'
        )
        see = f'{num(found["codes"], "d")} values; {clipped} % are clipped'
        if is_number(one.get(rank)):
            see += f'; SQNR {num(one[rank], ".1f")} dB'
        drawn.append(figure(title, see + '.', grid_histogram(title, found)))
    words = (
        f'{what} the {len(drawn)} layers with the lowest SQNR of '
        f'{"the weight" if key == "weights" else "the output"}:'
    )
    return join([tag('h4', words), grid(*drawn)])
