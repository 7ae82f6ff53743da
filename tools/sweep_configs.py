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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mmdet
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mmdet_ptq import quantize_detector
from mmdet_ptq.testing import (noise_batches, random_detector,
                               settle_batch_norms)

# from small to large; a name holding none of them counts as middling
_SIZES = ('nano', 'tiny', 'r18', 'mobilenet', '400mf', '-t0', '-t-', '_t-',
          '-b0', 'pvt-t', 'swin-t', '_s_', '-s-', '-s_', 'r34', '800mf',
          'r50', 'x101', 'r101', 'l_', '_x_', 'swin-l')


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
        return (min(sizes, default=len(_SIZES) // 2), len(path.stem),
                path.name)

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


class Selections(TorchFunctionMode):
    """Records what top-k and sorting chose, or makes them choose it again.

    Outputs of a float and a quantized detector can be compared row by row
    only if both kept the same candidates in the same order.
    """

    names = ('topk', 'sort', 'argsort', 'nonzero')

    def __init__(self, replay: list | None = None) -> None:
        super().__init__()
        self.made: list[Any] = []
        self.replay = list(replay) if replay is not None else None

    def __torch_function__(self, func: Any, types: Any, args: tuple = (),
                           kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if getattr(func, '__name__', '') not in self.names:
            return out
        index = out if isinstance(out, Tensor) else out[1]
        if self.replay is None:
            self.made.append(index)
            return out
        if not self.replay or self.replay[0].shape != index.shape:
            return out
        index = self.replay.pop(0)
        if isinstance(out, Tensor):
            return index
        dim = (kwargs or {}).get('dim', -1)
        return type(out)([args[0].gather(dim, index), index])


def raw_outputs(model: nn.Module, batch: dict, memory: dict) -> list[Tensor]:
    """Every float tensor of a raw forward, on equal proposals.

    Where a detector has no working raw mode, what its heads return during
    a prediction.

    Args:
        model (nn.Module): The detector.
        batch (dict): One batch.
        memory (dict): Empty for the float model, which fills it with what
            was selected; given again, the same is selected.

    Returns:
        list[Tensor]: In the order of the output.
    """
    replay = memory.get('selections')
    try:
        if memory.get('mode') == 'predict':
            raise NotImplementedError
        out, made = _run(model, batch, memory, 'tensor', replay)
        memory['mode'] = 'tensor'
    except Exception:
        if memory.get('mode') == 'tensor':
            raise
        memory['mode'] = 'predict'
        out, made = _run(model, batch, memory, 'predict', replay)
    memory.setdefault('selections', made)
    flat: list[Tensor] = []
    _flatten(out, flat)
    return flat


def _run(model: nn.Module, batch: dict, memory: dict, mode: str,
         replay: list | None) -> tuple[Any, list]:
    data = model.data_preprocessor(copy.deepcopy(batch), False)
    seen: list[Any] = []
    heads = [m for n, m in model.named_children()
             if n not in ('backbone', 'neck', 'data_preprocessor')]
    handles = [h.register_forward_hook(lambda *a: seen.append(a[2]))
               for h in heads if mode == 'predict']
    selections = Selections(replay)
    try:
        with torch.no_grad(), selections, _proposals(
                getattr(model, 'rpn_head', None), memory):
            out = model(**data, mode=mode)
    finally:
        for handle in handles:
            handle.remove()
    return (seen if mode == 'predict' else out), selections.made


@contextmanager
def _proposals(rpn: nn.Module | None, memory: dict) -> Iterator[None]:
    if rpn is None or not hasattr(rpn, 'predict'):
        yield
        return
    original = rpn.predict

    def predict(*args: Any, **kwargs: Any) -> Any:
        found = original(*args, **kwargs)
        return copy.deepcopy(memory.setdefault('proposals', found))

    rpn.predict = predict
    try:
        yield
    finally:
        del rpn.predict


def _flatten(out: Any, into: list[Tensor]) -> None:
    if isinstance(out, Tensor):
        if out.is_floating_point() and out.numel():
            into.append(out.detach().float())
    elif isinstance(out, dict):
        for value in out.values():
            _flatten(value, into)
    elif isinstance(out, list | tuple):
        for value in out:
            _flatten(value, into)


def cosine(a: list[Tensor], b: list[Tensor]) -> float:
    """The lowest cosine over tensors, -1 where shapes differ."""
    if len(a) != len(b) or any(
            x.shape != y.shape for x, y in zip(a, b, strict=True)):
        return -1.0
    return min(
        (float(nn.functional.cosine_similarity(
            x.double().flatten(), y.double().flatten(), 0))
         for x, y in zip(a, b, strict=True) if bool(x.any() or y.any())),
        default=1.0)


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
        built=False, float_ok=False, quantized=False, predicts=False,
        layers=0, left_float={}, cosine=None, seconds=0.0, why='')
    start = time.perf_counter()
    try:
        model = random_detector(path)
        row['built'] = True
        data = noise_batches(2, size)
        try:
            settle_batch_norms(model, data)
        except Exception:
            model.eval()  # no raw mode, or one sample for a batch norm
        memory: dict = {}
        with torch.no_grad():
            model.test_step(copy.deepcopy(data[0]))
            expected = raw_outputs(model, data[0], memory)
        row['float_ok'] = True
        session = quantize_detector(
            model, copy.deepcopy(data), dict(recipe='uniform', bits='w8a8'))
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
            bool(torch.isfinite(t).all()) for t in found)
    except Exception as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        first = (str(error).splitlines() or [''])[0][:160]
        where = f'{Path(at.filename).name}:{at.lineno}'
        row['why'] = f'{type(error).__name__} at {where}: {first}'
    row['seconds'] = round(time.perf_counter() - start, 1)
    row['peak_mb'] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return row


def _finite(results: list) -> bool:
    for sample in results:
        instances = getattr(sample, 'pred_instances', None)
        for value in (instances.values() if instances is not None else ()):
            value = getattr(value, 'tensor', value)
            if isinstance(value, Tensor) and value.is_floating_point() and (
                    not bool(torch.isfinite(value).all())):
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
    return dict(built=False, float_ok=False, quantized=False, predicts=False,
                layers=0, left_float={}, cosine=None, seconds=limit, why=why)


def to_markdown(rows: dict[str, dict], command: str,
                size: tuple[int, int]) -> str:
    """The support matrix as a page."""
    usable = {n: r for n, r in rows.items() if r['float_ok']}
    good = [n for n, r in usable.items()
            if r['predicts'] and (r['cosine'] or 0) >= 0.99]
    lines = [
        '# Support matrix', '',
        'The smallest config of every family folder that MMDetection '
        f'{mmdet.__version__} ships, random weights, `uniform` w8a8 on two '
        f'images of {size[0]} x {size[1]}. Cosine: the lowest over raw '
        'output tensors, quantized against float, on equal proposals and '
        'selections.', '',
        f'Made by `{command}` on {platform.machine()} CPU, torch '
        f'{torch.__version__}.', '',
        f'**{len(usable)}** of {len(rows)} families build and predict in '
        f'float here; **{len(good)}** of these '
        f'({100 * len(good) / max(1, len(usable)):.1f} %) quantize and '
        'predict with finite output and cosine >= 0.99.', '',
        '| family | config | float runs | quantized | predicts | layers | '
        'left float | cosine | seconds | note |',
        '|---|---|---|---|---|---|---|---|---|---|'
    ]
    for name, r in rows.items():
        left = '; '.join(f'{n} x {w}' for w, n in r['left_float'].items())
        lines.append('| ' + ' | '.join([
            name, r['config'], *('yes' if r[k] else 'no' for k in (
                'float_ok', 'quantized', 'predicts')),
            str(r['layers']), left,
            '' if r['cosine'] is None else f'{r["cosine"]:.4f}',
            f'{r["seconds"]:.0f}', r['why'].replace('|', '/')
        ]) + ' |')
    return '\n'.join(lines) + '\n'


def main() -> int:
    """Runs the sweep; exit code 0 whatever single families do."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('families', nargs='*', help='default: all')
    parser.add_argument('--out', default='docs/support_matrix.md')
    parser.add_argument('--size', type=int, nargs=2, default=(128, 160),
                        help='height and width of the images')
    parser.add_argument('--limit', type=float, default=240,
                        help='seconds for one family')
    parser.add_argument('--resume', action='store_true',
                        help='keep the rows of an earlier run')
    args = parser.parse_args()
    warnings.filterwarnings('ignore')
    todo = families()
    unknown = [f for f in args.families if f not in todo]
    if unknown:
        parser.error(f'no such family: {", ".join(unknown)}; '
                     f'allowed: {", ".join(todo)}')
    store = Path(args.out).with_suffix('.json')
    rows = json.loads(store.read_text()) if (
        args.resume and store.is_file()) else {}
    for name, path in todo.items():
        if name in rows or (args.families and name not in args.families):
            continue
        row = in_child(path, tuple(args.size), args.limit)
        rows[name] = dict(config=path.name, **row)
        print(name, path.name, {k: v for k, v in row.items()
                                if k != 'left_float'}, flush=True)
        store.parent.mkdir(parents=True, exist_ok=True)
        store.write_text(json.dumps(rows, indent=1, sort_keys=True))
    rows = dict(sorted(rows.items()))
    Path(args.out).write_text(
        to_markdown(rows, 'python tools/sweep_configs.py', tuple(args.size)))
    return 0


if __name__ == '__main__':
    sys.exit(main())
