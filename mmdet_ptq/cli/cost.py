# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Counts what a quantized detector costs; needs no checkpoint."""

import argparse
import json
import os.path as osp
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ..cost import mean_bits, part_table
from ..engine.environment import check_writable, tolerate
from ..engine.estimate import estimate, size_of
from ..errors import PTQError, QuantConfigError
from ..quant_cfg import SCOPES, parse_quant_cfg, recipe_names
from ..report import read_run, write_budget, write_text
from .arguments import CfgOptions
from .config import leave_scope, quant_cfg_of, read_config

#: of the result of a run
KEYS = dict(
    config=str,
    recipe=str,
    bits=str,
    scope=(str, type(None)),
    storage_mb=dict,
    cost=dict,
    layers=dict,
    notes=list,
)
Column = tuple[list[str], float, bool]
"""What is in it, in which unit, and whether its share is said."""


def _columns(bops: float) -> dict[str, Column]:
    """Of the table, by name; for so many bit operations in all."""
    name, unit = ('BOPs (T)', 1e12) if bops >= 1e12 else ('BOPs (G)', 1e9)
    return {
        'MACs (G)': (['macs'], 1e9, False),
        name: (['bops'], unit, True),
        'params (M)': (['params'], 1e6, False),
        'MB': (['float', 'quantized'], 1e6, True),
    }


def parse_args(
    argv: Sequence[str] | None = None, prog: str | None = None
) -> argparse.Namespace:
    """Reads the command line; see :func:`main`."""
    parser = argparse.ArgumentParser(prog, description=__doc__)
    parser.add_argument(
        'config',
        help='config of a detector, a file or mmdet::<config>, with or '
        'without a quant_cfg; or the work dir of a run of mmdet-ptq quantize',
    )
    parser.add_argument(
        '--recipe',
        help="recipe name or file; default: the config's quant_cfg, else "
        f'"uniform" ({", ".join(recipe_names())})',
    )
    parser.add_argument('--bits', help='as for quantize; default w8a8')
    parser.add_argument(
        '--scope', help=f'as for quantize ({", ".join(SCOPES)})'
    )
    parser.add_argument(
        '--size',
        nargs=2,
        type=int,
        metavar=('HEIGHT', 'WIDTH'),
        help='of the image, in pixels; default: what the test pipeline '
        'resizes to',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=CfgOptions,
        help='override settings of the config, key=value',
    )
    parser.add_argument(
        '--work-dir',
        help='where cost.json and cost.svg go; default: of a config '
        './work_dirs/<config name>, of a run its own',
    )
    # what quantize has besides
    parser.set_defaults(iters=None, calib_num=None, calib_source=None)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Runs the command; returns the exit code.

    Args:
        argv (Sequence[str], optional): Its arguments. Defaults to those of
            the process.
        prog (str, optional): What it is called in its help.
    """
    tolerate(sys.stdout, sys.stderr)
    args = parse_args(argv, prog)
    try:
        found = _counted(args)
        folder = _folder(args)
        check_writable(str(folder))
        write_text(folder / 'cost.json', json.dumps(found, indent=1))
        write_budget(found, folder / 'cost.svg')
    except PTQError as error:
        print(f'\nerror: {error}', file=sys.stderr)
        return 1
    _print(found)
    print(f'{folder / "cost.json"} and cost.svg written')
    return 0


def _counted(args: argparse.Namespace) -> dict[str, Any]:
    """The counts of a config, or those that a run left."""
    if osp.isdir(args.config):
        return _of_run(args)
    cfg = read_config(args.config)
    leave_scope(list(cfg.values()))
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    quant = parse_quant_cfg(quant_cfg_of(cfg, args))
    return estimate(cfg, quant, _size(args) or size_of(cfg))


def _of_run(args: argparse.Namespace) -> dict[str, Any]:
    asked = (args.recipe, args.bits, args.scope, args.size, args.cfg_options)
    if any(one is not None for one in asked):
        raise QuantConfigError(
            f'{args.config} is the work dir of a run, whose costs are known; '
            'leave --recipe, --bits, --scope, --size and --cfg-options out'
        )
    run = read_run(args.config)
    layers = run.part('cost', 'layers') or {}
    whole = all(isinstance(run.part(key), kind) for key, kind in KEYS.items())
    if (
        not whole
        or not layers
        or any('elements' not in one for one in layers.values())
    ):
        raise PTQError(
            f'{args.config} has no costs of each layer: the run ended before '
            'or is of an earlier version; run mmdet-ptq quantize again'
        )
    return {key: run.part(key) for key in KEYS}


def _size(args: argparse.Namespace) -> tuple[int, int] | None:
    if args.size is None:
        return None
    height, width = args.size
    if min(height, width) < 1:
        raise QuantConfigError(
            f'--size {height} {width}: both are at least 1 pixel'
        )
    return height, width


def _folder(args: argparse.Namespace) -> Path:
    if args.work_dir:
        return Path(args.work_dir)
    if osp.isdir(args.config):
        return Path(args.config)
    return Path('work_dirs') / Path(args.config).stem


def _print(found: dict[str, Any]) -> None:
    """The table, what stays float, and notes."""
    cost = found['cost']
    rows = part_table(cost)
    shape = 'x'.join(map(str, cost['input'][2:]))
    console = Console()
    table = Table(
        title=f'{found["recipe"]} {found["bits"]} at {shape}',
        caption='bits: weight x input (layers); per cent of all',
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    columns = _columns(rows['all']['bops'])
    for name in ('part', 'bits', *columns):
        words = name in ('part', 'bits')
        table.add_column(
            name, justify='left' if words else 'right', no_wrap=True
        )
    for name, row in rows.items():
        if name == 'all':
            table.add_section()
        table.add_row(
            name,
            '' if name == 'all' else _widths(row['bits']),
            *(_cell(row, rows['all'], *one) for one in columns.values()),
        )
    console.print(table)
    weights, inputs = mean_bits(cost)
    console.print(
        f'bits of a weight {weights:.3g}, of an input {inputs:.3g} on '
        'average; what is float counts as 32'
    )
    if found['layers']['float']:
        names = ', '.join(one['name'] for one in found['layers']['float'])
        console.print(f'float: {names}')
    if cost['not_counted']:
        console.print(f'not counted: {cost["not_counted"]}')
    for note in found['notes']:
        console.print(f'note: {note}')


def _cell(
    row: dict[str, Any],
    whole: dict[str, Any],
    keys: list[str],
    unit: float,
    shared: bool,
) -> str:
    """Numbers of a part, and the share of the last in all."""
    numbers = ' → '.join(f'{row[key] / unit:,.2f}' for key in keys)
    share = 100 * row[keys[-1]] / (whole[keys[-1]] or 1)
    # the sums are all of it
    return (
        f'{numbers} {share:3.0f}%' if shared and row is not whole else numbers
    )


def _widths(bits: Counter[str]) -> str:
    """The most common first."""
    found = [f'{name} ({count})' for name, count in bits.most_common(3)]
    more = len(bits) - len(found)
    return '\n'.join([*found, *([f'{more} more'] if more else [])])
