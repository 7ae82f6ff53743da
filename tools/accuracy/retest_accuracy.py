# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
r"""Tests the finished cells of a suite on other and more images.

A few hundred images do not tell methods apart that differ by thousandths.
The artefacts that ``benchmark_accuracy.py`` left in its work dir, and the
float detectors, are tested on another set of digits::

    python -m tools.data.make_digits --train 1 --val 1600 --seed 2 \
        --out data/digits_1600
    python -m tools.accuracy.retest_accuracy table1 data/digits_1600

Cells that are finished are kept, as long as artefact and set are the same.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mmdet

from mmdet_ptq.engine.machine import machine
from tools.accuracy.benchmark_accuracy import choose
from tools.accuracy.cells import flag_of, key_of, name_of
from tools.accuracy.suites import BUDGETS, ROOT, SUITES, files_of
from tools.accuracy.tables import to_markdown

Tester = Callable[[str, Path, Path, Path], float]
METRIC = 'coco/bbox_mAP'
ARTEFACT = 'quantized.pth'
QUANTIZED = """
custom_imports = dict(imports=['mmdet_ptq'])
runner_type = 'PTQRunner'
"""
TEST = Path(mmdet.__file__).parent / '.mim' / 'tools' / 'test.py'


def artefact_of(cell: dict, work: Path) -> Path | None:
    """The artefact that a cell's AP is of, if the work dir still has it."""
    name = '_'.join(map(str, key_of(cell)))
    suite = cell.get('suite', work.name)
    for path in work.with_name(suite).glob(f'*/{name}/{ARTEFACT}'):
        result = json.loads(path.with_name('ptq_result.json').read_text())
        if result['quantized'].get(METRIC) == cell['quantized']:
            return path
    return None


def test(detector: str, checkpoint: Path, data: Path, folder: Path) -> float:
    """Box AP of a float checkpoint or an artefact on a set of digits.

    Args:
        detector (str): Name of its config.
        checkpoint (Path): Of the detector.
        data (Path): The set.
        folder (Path): For config and logs.

    Returns:
        float: AP (0.50:0.95).

    Raises:
        RuntimeError: If the test fails; its log stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config, log = folder / 'test.py', folder / 'log.txt'
    config.write_text(
        f"_base_ = r'{files_of(detector)['config']}'\n"
        f"test_dataloader = dict(dataset=dict(data_root=r'{data}/'))\n"
        f"test_evaluator = dict(ann_file=r'{data}/val.json')\n"
        + (QUANTIZED if checkpoint.name == ARTEFACT else '')
    )
    command = [sys.executable, TEST, config, checkpoint, '--work-dir', folder]
    with open(log, 'w') as out:
        done = subprocess.run(
            list(map(str, command)),
            cwd=ROOT,
            env=dict(os.environ, OMP_NUM_THREADS='1'),
            stdout=out,
            stderr=out,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f'{checkpoint}: {done.returncode}, see {log}')
    newest = max(folder.glob('*/*.json'), key=lambda p: p.stat().st_mtime)
    return json.loads(newest.read_text().splitlines()[-1])[METRIC]


def _digest(*paths: Path) -> str:
    whole = b''.join(hashlib.sha256(p.read_bytes()).digest() for p in paths)
    return hashlib.sha256(whole).hexdigest()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('suite', choices=[s for s in SUITES if s != 'yolox'])
    parser.add_argument('data', type=Path, help='a set of make_digits.py')
    parser.add_argument('--budget', choices=BUDGETS, default='cpu')
    parser.add_argument('--only', nargs='*', help='only these detectors')
    parser.add_argument('--bits', nargs='*', help='only these widths')
    parser.add_argument('--methods', nargs='*', help='only these methods')
    parser.add_argument('--jobs', type=int, default=1, help='tests at once')
    parser.add_argument('--out', type=Path, default=ROOT / 'docs' / 'results')
    parser.add_argument(
        '--work-dir', type=Path, default=ROOT / 'work_dirs' / 'accuracy'
    )
    return parser


def main(words: list[str] | None = None, tester: Tester = test) -> int:
    """Command line of the tool.

    Args:
        words (list[str], optional): Defaults to those of the process.
        tester (Callable): See :func:`test`.

    Returns:
        int: Exit code, 1 if a test failed.
    """
    parser = _parser()
    args = parser.parse_args(words)
    data = args.data.resolve()
    work = (args.work_dir / args.suite).resolve()
    if not (data / 'val.json').is_file():
        parser.error(f'{data}/val.json does not exist; see --help')
    images = json.loads((data / 'settings.json').read_text())
    wanted = choose(parser, args)
    name = name_of(args.suite, args.budget)
    table = args.out / f'{name}.json'
    if not table.is_file():
        parser.error(f'{table} does not exist: run benchmark_accuracy first')
    known = json.loads(table.read_text())
    cells = {key_of(c): c for c in known}
    path = args.out / f'{name}_{data.name}.json'
    kept = json.loads(path.read_text()) if path.is_file() else []
    done = {key_of(c): c for c in kept}
    floats = {c['float_hash']: c['float'] for c in kept}
    hashes = {}
    lock, failed = threading.Lock(), []

    def float_one(detector: str) -> None:
        checkpoint = files_of(detector)['checkpoint']
        digest = _digest(checkpoint, data / 'val.json')
        if digest not in floats:
            folder = work / data.name / detector
            floats[digest] = tester(detector, checkpoint, data, folder)
            print(detector, 'float', floats[digest], flush=True)
        hashes[detector] = digest

    def one(key: tuple) -> None:
        artefact = artefact_of(cells[key], work)
        if artefact is None:
            print(*key, 'has no artefact in the work dir', flush=True)
            return
        digest = _digest(artefact, data / 'val.json')
        if done.get(key, {}).get('hash') == digest:
            return
        try:
            ap = tester(key[0], artefact, data, artefact.parent / data.name)
        except RuntimeError as error:
            print(error, flush=True)
            failed.append(key)
            return
        print(*key, ap, flush=True)
        with lock:
            # mask AP is that of the suite's own images
            cell = {k: v for k, v in cells[key].items() if k[:4] != 'mask'}
            done[key] = dict(
                cell,
                quantized=ap,
                float=floats[hashes[key[0]]],
                float_hash=hashes[key[0]],
                hash=digest,
                images=dict(name=data.name, **images),
                tested_on=machine(),
            )
            found = [done[k] for k in SUITES[args.suite] if k in done]
            path.write_text(json.dumps(found, indent=1))
            command = (
                f'python -m tools.accuracy.retest_accuracy {args.suite} '
                f'data/{data.name}{flag_of(args.budget)}'
            )
            path.with_suffix('.md').write_text(
                to_markdown(args.suite, found, command)
            )

    here = [key for key in wanted if key in cells]
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(float_one, dict.fromkeys(key[0] for key in here)))
        list(pool.map(one, here))
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
