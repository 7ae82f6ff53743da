# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Quantizes the smallest config of every family that MMDetection ships.

Each detector is built with random weights (batch norm statistics taken from
the two images), quantized by ``uniform`` w8a8 on two small images, and asked
to predict. A crash or a time-out of one does not stop the rest.
"""

import argparse
import copy
import json
import multiprocessing
import os
import platform
import re
import resource
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import mmdet
import torch
from torch import Tensor, nn

from mmdet_ptq import quantize_detector
from mmdet_ptq.testing import (
    cosine,
    noise_batches,
    random_detector,
    raw_outputs,
    settle_batch_norms,
)

# from small to large; a name holding none of them counts as middling
_SIZES = (
    'nano',
    'tiny',
    'r18',
    'mobilenet',
    '400mf',
    '-t0',
    '-t-',
    '_t-',
    '-b0',
    'pvt-t',
    'swin-t',
    '_s_',
    '-s-',
    '-s_',
    'r34',
    '800mf',
    'r50',
    'x101',
    'r101',
    'l_',
    '_x_',
    'swin-l',
)


def smallest_config(folder: Path) -> Path | None:
    """The config of a family that is likely the smallest.

    Args:
        folder (Path): A family folder of MMDetection's configs.

    Returns:
        Path | None: By the sizes in file names, then by name length; None
        if the folder has no config of a whole detector.
    """

    def rank(path: Path) -> tuple[int, int, str]:
        sizes = [i for i, s in enumerate(_SIZES) if s in path.stem.lower()]
        return (
            min(sizes, default=len(_SIZES) // 2),
            len(path.stem),
            path.name,
        )

    for path in sorted(folder.glob('*.py'), key=rank):
        text = path.read_text()
        if re.search(r'^model\s*=|_base_', text, re.M):
            return path
    return None


def families() -> dict[str, Path]:
    """Family name to its smallest config, for the installed MMDetection."""
    root = Path(mmdet.__file__).parent / '.mim' / 'configs'
    found = {
        folder.name: smallest_config(folder)
        for folder in sorted(root.iterdir())
        if folder.is_dir() and folder.name not in ('_base_', 'common')
    }
    return {name: path for name, path in found.items() if path is not None}


def examine(path: Path, size: tuple[int, int]) -> dict:
    """Builds, quantizes and runs one detector.

    Args:
        path (Path): Its config.
        size (tuple[int, int]): Height and width of the images.

    Returns:
        dict: ``built``, ``float_ok``, ``quantized``, ``predicts``,
        ``layers``, ``left_float``, ``cosine``, ``seconds``, ``why``.
    """
    row: dict[str, Any] = dict(
        built=False,
        float_ok=False,
        quantized=False,
        predicts=False,
        layers=0,
        left_float={},
        cosine=None,
        seconds=0.0,
        why='',
    )
    start = time.perf_counter()
    try:
        memory: dict = {}
        try:
            model, data, expected = _float_run(path, size, memory, row)
        except Exception:
            if not row['built']:
                raise
            # two-stage queries want more positions than a small image has
            memory, size = {}, (2 * size[0], 2 * size[1])
            model, data, expected = _float_run(path, size, memory, row)
        row['float_ok'] = True
        session = quantize_detector(
            model, copy.deepcopy(data), dict(recipe='uniform', bits='w8a8')
        )
        row['quantized'] = True
        plans = session.plan.layers.values()
        row['layers'] = sum(1 for p in plans if not p.why_float)
        left = [p.why_float for p in plans if p.why_float]
        left += list(session.plan.uncovered.values())
        left += ['not called'] * len(session.graph.uncalled)
        row['left_float'] = {w: left.count(w) for w in sorted(set(left))}
        found = raw_outputs(model, data[0], memory)
        row['cosine'] = round(cosine(expected, found), 5)
        results = model.test_step(copy.deepcopy(data[1]))
        row['predicts'] = _finite(results) and all(
            bool(torch.isfinite(t).all()) for t in found
        )
    except Exception as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        first = (str(error).splitlines() or [''])[0][:160]
        where = f'{Path(at.filename).name}:{at.lineno}'
        row['why'] = f'{type(error).__name__} at {where}: {first}'
    row['seconds'] = round(time.perf_counter() - start, 1)
    row['peak_mb'] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return row


def _float_run(
    path: Path, size: tuple[int, int], memory: dict, row: dict
) -> tuple[nn.Module, list[dict], list[Tensor]]:
    """Builds a detector and runs it in float."""
    model = random_detector(path)
    row['built'] = True
    data = noise_batches(2, size)
    try:
        settle_batch_norms(model, data)
    except Exception:
        model.eval()  # no raw mode, or one sample for a batch norm
    with torch.no_grad():
        model.test_step(copy.deepcopy(data[0]))
        return model, data, raw_outputs(model, data[0], memory)


def _finite(results: list) -> bool:
    for sample in results:
        instances = getattr(sample, 'pred_instances', None)
        for value in instances.values() if instances is not None else ():
            value = getattr(value, 'tensor', value)
            if (
                isinstance(value, Tensor)
                and value.is_floating_point()
                and (not bool(torch.isfinite(value).all()))
            ):
                return False
    return True


def in_child(path: Path, size: tuple[int, int], limit: float) -> dict:
    """Runs :func:`examine` in a forked process that may die."""
    context = multiprocessing.get_context('fork')
    receiver, sender = context.Pipe(duplex=False)

    def work() -> None:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 1)
        os.dup2(devnull, 2)
        torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
        sender.send(examine(path, size))

    child = context.Process(target=work)
    child.start()
    sender.close()
    try:
        if receiver.poll(limit):
            return receiver.recv()
        why = f'no result within {limit:.0f} s'
    except EOFError:
        child.join()
        why = f'the process died with exit code {child.exitcode}'
    finally:
        child.kill() if child.is_alive() else None
        child.join()
    return dict(
        built=False,
        float_ok=False,
        quantized=False,
        predicts=False,
        layers=0,
        left_float={},
        cosine=None,
        seconds=limit,
        why=why,
    )


def to_markdown(
    rows: dict[str, dict], total: int, command: str, size: tuple[int, int]
) -> str:
    """The support matrix as a page."""
    usable = {n: r for n, r in rows.items() if r['float_ok']}
    good = [
        n
        for n, r in usable.items()
        if r['predicts'] and (r['cosine'] or 0) >= 0.99
    ]
    lines = [
        '# Support matrix',
        '',
        'The smallest config of every family folder that MMDetection '
        f'{mmdet.__version__} ships, random weights, `uniform` w8a8 on two '
        f'images of {size[0]} x {size[1]}. Cosine: the lowest over raw '
        'output tensors, quantized against float, on equal proposals and '
        'selections.',
        '',
        f'Made by `{command}` on {platform.machine()} CPU, torch '
        f'{torch.__version__}.',
        '',
        f'{len(rows)} of {total} families were run. **{len(usable)}** build '
        f'and predict in float here; **{len(good)}** of these '
        f'({100 * len(good) / max(1, len(usable)):.1f} %) quantize and '
        'predict with finite output and cosine >= 0.99.',
        '',
        '| family | config | float runs | quantized | predicts | layers | '
        'left float | cosine | seconds | note |',
        '|---|---|---|---|---|---|---|---|---|---|',
    ]
    for name, r in rows.items():
        left = '; '.join(f'{n} x {w}' for w, n in r['left_float'].items())
        lines.append(
            '| '
            + ' | '.join(
                [
                    name,
                    r['config'],
                    *(
                        'yes' if r[k] else 'no'
                        for k in ('float_ok', 'quantized', 'predicts')
                    ),
                    str(r['layers']),
                    left,
                    '' if r['cosine'] is None else f'{r["cosine"]:.4f}',
                    f'{r["seconds"]:.0f}',
                    r['why'].replace('|', '/'),
                ]
            )
            + ' |'
        )
    return '\n'.join(lines) + '\n'


def main() -> int:
    """Runs the sweep; exit code 0 whatever single families do."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('families', nargs='*', help='default: all')
    parser.add_argument('--out', default='docs/support_matrix.md')
    parser.add_argument(
        '--size',
        type=int,
        nargs=2,
        default=(128, 160),
        help='height and width of the images',
    )
    parser.add_argument(
        '--limit', type=float, default=240, help='seconds for one family'
    )
    parser.add_argument(
        '--resume', action='store_true', help='keep the rows of an earlier run'
    )
    args = parser.parse_args()
    warnings.filterwarnings('ignore')
    todo = families()
    unknown = [f for f in args.families if f not in todo]
    if unknown:
        parser.error(
            f'no such family: {", ".join(unknown)}; allowed: {", ".join(todo)}'
        )
    store = Path(args.out).with_suffix('.json')
    rows = (
        json.loads(store.read_text())
        if (args.resume and store.is_file())
        else {}
    )
    for name, path in todo.items():
        if name not in (args.families or set(todo) - set(rows)):
            continue
        row = in_child(path, tuple(args.size), args.limit)
        rows[name] = dict(config=path.name, **row)
        print(
            name,
            path.name,
            {k: v for k, v in row.items() if k != 'left_float'},
            flush=True,
        )
        store.parent.mkdir(parents=True, exist_ok=True)
        store.write_text(json.dumps(rows, indent=1, sort_keys=True))
        page = to_markdown(
            dict(sorted(rows.items())),
            len(todo),
            'python tools/sweep_configs.py',
            tuple(args.size),
        )
        Path(args.out).write_text(page)
    return 0


if __name__ == '__main__':
    sys.exit(main())
