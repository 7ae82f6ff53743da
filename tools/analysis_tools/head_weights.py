# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""How well logarithmic levels fit the weights of the heads.

Reg-PTQ's levels assume that small weights are many, as in a Laplace density.
For the heads of the digits detectors this compares their error with that of
uniform levels, both as calibration sets them, before anything is learned:

    python -m tools.analysis_tools.head_weights

writes ``docs/results/head_weights.json`` and the table ``.md`` made from it.
"""

import argparse
import copy
import json
from pathlib import Path

import torch
from mmdet.apis import init_detector
from mmengine.config import Config
from torch import nn

from mmdet_ptq import quantize_detector
from mmdet_ptq.calibration import from_config
from mmdet_ptq.quant_cfg import parse_quant_cfg
from tools.accuracy.suites import (
    DETECTORS,
    FLOAT_HEADS,
    ROOT,
    UNIFORM_HEADS,
    files_of,
)
from tools.analysis_tools.toy.weights import kurtosis

WIDTHS = (2, 3, 4)


def weights(
    model: nn.Module, batch: dict, bits: int, rules: list[dict]
) -> dict[str, torch.Tensor]:
    """Weights of the layers of heads as Reg-PTQ sets them before learning.

    Args:
        model (nn.Module): A float detector; a copy is quantized.
        batch (dict): An image, for the survey.
        bits (int): Of the weights.
        rules (list[dict]): Added to those of Reg-PTQ.

    Returns:
        dict[str, Tensor]: For each layer float64 ``[out, in]``, norms
        folded in.
    """
    session = quantize_detector(
        copy.deepcopy(model),
        [batch],
        dict(
            recipe='reg_ptq',
            bits=f'w{bits}a8',
            rules=rules,
            pass_args=dict(Reconstruct=dict(iters=0)),
        ),
    )
    return {
        name: session.layers[name].weight.detach().flatten(1).double()
        for name, node in session.graph.layers.items()
        if node.roles & {'rpn', 'head', 'mask'}
        and 'prediction' not in node.roles
        and hasattr(session.layers[name], 'weight')
    }


def study(detector: str) -> dict:
    """Shape of the weights, and errors of both kinds of levels.

    Args:
        detector (str): Name of its config.

    Returns:
        dict: ``detector``, ``layers`` (how many), ``kurtosis`` (excess, the
        median layer), and for each width ``uniform`` and ``log``: squared
        error of a layer over its squared sum, mean over layers.
    """
    files = files_of(detector)
    cfg = Config.fromfile(files['config'])
    model = init_detector(cfg, str(files['checkpoint']), device='cpu')
    wanted = dict(recipe='reg_ptq', bits='w4a8')
    batch = from_config(cfg, parse_quant_cfg(wanted).calibration).first()
    exact = weights(model, batch, 4, FLOAT_HEADS)
    row: dict = dict(detector=detector)
    for bits in WIDTHS:
        means = {}
        for kind, rules in (('uniform', UNIFORM_HEADS), ('log', [])):
            found = weights(model, batch, bits, rules)
            errors = [
                float((w - exact[n]).square().sum() / exact[n].square().sum())
                for n, w in found.items()
            ]
            means[kind] = sum(errors) / len(errors)
        row[f'w{bits}'] = means
    shapes = torch.stack([kurtosis(exact[name]) for name in found])
    return dict(row, layers=len(found), kurtosis=float(shapes.median()))


def to_markdown(rows: list[dict]) -> str:
    """One row a detector."""
    lines = [
        '# Weights of the heads',
        '',
        'Squared error of the weights of the layers of heads, over their '
        'squared sum, mean over layers: levels as Reg-PTQ sets them before '
        'learning, uniform / logarithmic, and their ratio. Excess kurtosis '
        '(median layer): -1.2 uniform, 0 Gaussian, 3 Laplace. Made by '
        '`python -m tools.analysis_tools.head_weights`.',
        '',
        '| detector | layers | kurtosis | '
        + ' | '.join(f'{b} bits' for b in WIDTHS)
        + ' |',
        '|---' * (3 + len(WIDTHS)) + '|',
    ]
    for row in rows:
        cells = []
        for bits in WIDTHS:
            uniform, log = (row[f'w{bits}'][k] for k in ('uniform', 'log'))
            cells.append(f'{uniform:.4f} / {log:.4f}, {log / uniform:.2f}')
        lines.append(
            f'| {row["detector"]} | {row["layers"]} | {row["kurtosis"]:.2f} '
            f'| {" | ".join(cells)} |'
        )
    return '\n'.join([*lines, ''])


def main() -> None:
    """Command line of the tool."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, default=ROOT / 'docs/results')
    args = parser.parse_args()
    rows = [study(detector) for detector in DETECTORS]
    path = args.out / 'head_weights.json'
    path.write_text(json.dumps(rows, indent=1))
    path.with_suffix('.md').write_text(to_markdown(rows))
    print(to_markdown(rows))


if __name__ == '__main__':
    main()
