# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The toy study of Reg-PTQ: why regressors are hard to quantize.

Section 3.1 and figures 2, 3, 4, 6 and 7 of the paper, from its text: two
4-layer ReLU networks with about the same number of parameters, a regressor
of ``y = x^2`` and a classifier of Iris, are trained and then disturbed and
quantized. Draws five figures, writes all curves and a verdict on each of
the paper's claims::

    python -m tools.analysis_tools.toy.regression

The exact Hessian is that of Fig. 6: of the mean training loss with respect
to the *weights* of one layer, by ``torch.func.hessian`` (forward over
reverse mode), in float64. The diagonal Fisher is Eq. 3: squared gradients
of each sample's loss with respect to the *output* of that layer before its
ReLU. The network is piecewise linear in one layer's weights, so that both
are the same quadratic form but for two things which Eq. 3 drops: products
of different outputs, and the curvature of the loss, for which it takes the
squared gradient. ``output_diagonal`` drops the first only.

What the paper leaves open is chosen here: x in [-1, 1) so that y has the
range of a probability; 24 hidden units (576 weights a middle layer, under
the paper's 1000); only the two middle layers are quantized, one by one for
the scales and both for LLAQ; scales are clipping ranges of 0.2 to 1.2
times the largest weight; figures of single networks show the first one.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from tools.analysis_tools.toy.findings import findings
from tools.analysis_tools.toy.networks import (
    LAYERS,
    init_params,
    make_tasks,
    train,
)
from tools.analysis_tools.toy.plots import draw
from tools.analysis_tools.toy.study import noise_study, scale_study
from tools.analysis_tools.toy.weights import (
    levels_example,
    llaq_study,
    weight_study,
)

COMMAND = 'python -m tools.analysis_tools.toy.regression'
SIGMAS = (
    *(0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07),
    *(0.1, 0.14, 0.2, 0.3, 0.5, 0.7, 1.0),
)
WIDTHS = (2, 3, 4)
BITS = 4
MARK = '<!-- toy -->\n', '<!-- /toy -->'


def study(
    steps: int, replicas: int, draws: int, candidates: int, seed: int
) -> dict:
    """Trains and measures everything.

    Args:
        steps (int): Training steps.
        replicas (int): Networks of each task.
        draws (int): Noise draws a network.
        candidates (int): Scales tried a layer.
        seed (int): Seed of data, initial weights and noise.

    Returns:
        dict: Plain JSON types: ``settings``, the curves of ``regression``
        and ``classification``, ``example`` for the last figure, and
        ``findings``.
    """
    ratios = np.linspace(0.2, 1.2, candidates).round(6).tolist()
    found = dict(
        settings=dict(
            steps=steps,
            replicas=replicas,
            draws=draws,
            seed=seed,
            bits=BITS,
            sigmas=list(SIGMAS),
            ratios=ratios,
            widths=list(WIDTHS),
            layers=list(LAYERS),
        ),
        torch=torch.__version__,
    )
    for task in make_tasks(seed, replicas):
        generator = torch.Generator().manual_seed(seed)
        start = init_params(task.sizes, replicas, generator)
        params, kept = train(task, start, steps)
        noise = noise_study(task, params, SIGMAS, draws, generator)
        scales = {}
        for r in range(replicas):
            single = [p[r] for p in params]
            layers = [
                scale_study(task.at(r), single, layer, BITS, ratios)
                for layer in LAYERS
            ]
            for name in layers[0]:
                rows = [layer[name].tolist() for layer in layers]
                scales.setdefault(name, []).append(rows)
        found[task.name] = dict(
            parameters=sum(p[0].numel() for p in params),
            noise=noise,
            scales=scales,
            weights=weight_study(kept, BITS, ratios),
            llaq=llaq_study(task, params, WIDTHS, ratios),
        )
        if task.name == 'regression':
            weight = params[2 * LAYERS[0]][0]
            found['example'] = levels_example(weight, BITS, ratios)
    found['findings'] = findings(found)
    return found


def rounded(value: object) -> object:
    """Keeps 6 significant digits of each float; a third of the file."""
    if isinstance(value, float):
        return float(f'{value:.6g}')
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return value


def put_into_doc(found: dict, command: str, path: Path) -> None:
    """Replaces what stands between the markers of the page.

    Args:
        found (dict): What ``toy_regression.study`` gave.
        command (str): Command that gives it again.
        path (Path): Page with the two markers.
    """
    s = found['settings']
    lines = [
        f'Command: `{command}`: {s["replicas"]} networks of each task from '
        f'different initial weights and draws of the data, {s["steps"]} '
        f'steps, seed {s["seed"]}, '
        f'medians over networks and middle layers, torch {found["torch"]}.',
        '',
        '| the paper | here | measured |',
        '|---|---|---|',
    ]
    for row in found['findings'].values():
        verdict = 'holds' if row['holds'] else '**does not hold**'
        lines.append(f'| {row["claim"]} | {verdict} | {row["text"]} |')
    text = path.read_text(encoding='utf-8')
    before, rest = text.split(MARK[0])
    after = rest.split(MARK[1])[1]
    block = '\n'.join(lines)
    path.write_text(
        f'{before}{MARK[0]}{block}\n{MARK[1]}{after}', encoding='utf-8'
    )


def main(words: list[str] | None = None) -> int:
    """Runs the study, writes JSON, pictures and, if asked, the page.

    Args:
        words (list[str], optional): Defaults to those of the process.

    Returns:
        int: Exit code.
    """
    parser = argparse.ArgumentParser(
        description=__doc__.split('\n', 1)[0],
    )
    parser.add_argument('--out', default='work_dirs/toy_regression')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--steps', type=int, default=3000)
    parser.add_argument(
        '--replicas', type=int, default=16, help='networks of each task'
    )
    parser.add_argument(
        '--draws', type=int, default=64, help='noise draws a network'
    )
    parser.add_argument(
        '--candidates', type=int, default=101, help='scales tried a layer'
    )
    parser.add_argument(
        '--doc', type=Path, help='page whose block of numbers is rewritten'
    )
    args = parser.parse_args(words)
    for name in ('steps', 'replicas', 'draws'):
        if getattr(args, name) < 1:
            parser.error(f'--{name} must be at least 1')
    if args.candidates < 2:
        parser.error('--candidates must be at least 2')
    # the order of sums, and so the last bits, depend on it
    torch.set_num_threads(1)
    start = time.perf_counter()
    found = study(
        args.steps, args.replicas, args.draws, args.candidates, args.seed
    )
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(rounded(found), indent=None, allow_nan=False)
    (out / 'toy_regression.json').write_text(text + '\n')
    pictures = draw(found, out)
    for row in found['findings'].values():
        print(f'{"holds " if row["holds"] else "FAILS "} {row["claim"]}')
        print(f'        {row["text"]}')
    if args.doc:
        defaults = vars(parser.parse_args([]))
        options = ''.join(
            f' --{name} {getattr(args, name)}'
            for name in ('steps', 'replicas', 'draws', 'candidates', 'seed')
            if getattr(args, name) != defaults[name]
        )
        command = f'{COMMAND}{options} --doc {args.doc}'
        put_into_doc(found, command, args.doc)
    names = ', '.join(p.name for p in pictures)
    print(f'{out}: toy_regression.json, {names}')
    print(f'{time.perf_counter() - start:.0f} s')
    return 0


if __name__ == '__main__':
    sys.exit(main())
