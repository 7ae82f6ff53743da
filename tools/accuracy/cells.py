# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""One cell of the accuracy grid: its names, its hashes and its run."""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

import mmdet_ptq
from mmdet_ptq.quant_cfg import load_recipe
from tools.accuracy.suites import ROOT, YOLOX, files_of, quant_cfg

#: folders of the package that no result depends on: a cell's own recipe is
#: part of its hash, and ``.mim`` is what an installation puts there
APART = ('cost', 'recipes', 'report', 'testing', '.mim')


def key_of(cell: dict) -> tuple:
    """Of a finished cell: detector, method, bits, seed."""
    return cell['detector'], cell['recipe'], cell['bits'], cell['seed']


def parse_cell(text: str) -> tuple:
    """``detector,recipe,bits,seed`` as a cell."""
    parts = text.split(',')
    if len(parts) != 4 or not parts[3].isdigit():
        raise argparse.ArgumentTypeError(
            f'{text!r}: write detector,recipe,bits,seed'
        )
    return (*parts[:3], int(parts[3]))


def name_of(suite: str, budget: str) -> str:
    """Of the result files: a budget does not overwrite another's."""
    return suite if budget == 'cpu' else f'{suite}_{budget}'


def flag_of(budget: str) -> str:
    """What a command ends with to ask for a budget."""
    return '' if budget == 'cpu' else f' --budget {budget}'


def code_hash() -> str:
    """Hash of the sources that a result can depend on."""
    digest = hashlib.sha256()
    folder = Path(mmdet_ptq.__file__).parent
    for path in sorted(folder.rglob('*.py')):
        name = path.relative_to(folder).as_posix()
        if name.split('/')[0] in APART:
            continue
        digest.update(name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def cell_hash(cell: tuple, budget: dict) -> str:
    """Hash of all but code that the result of a cell depends on."""
    detector, method, bits, seed = cell
    cfg = quant_cfg(method, bits, seed, budget)
    parts = [
        json.dumps(cfg, sort_keys=True),
        json.dumps(load_recipe(cfg['recipe']), sort_keys=True, default=str),
        torch.__version__,
    ]
    for path in files_of(detector).values():
        parts.append(hashlib.sha256(path.read_bytes()).hexdigest())
    return hashlib.sha256('\n'.join(parts).encode()).hexdigest()


def folder_of(cell: tuple, work: Path) -> Path:
    """Where a cell works; never goes on with what other code began.

    Args:
        cell (tuple): Detector, method, bits, seed.
        work (Path): The work dir of its suite.
    """
    return work / code_hash()[:12] / '_'.join(map(str, cell))


def run_cell(cell: tuple, budget: dict, work: Path, threads: int) -> dict:
    """Runs one cell.

    Args:
        cell (tuple): Detector, method, bits, seed.
        budget (dict): One of ``BUDGETS``.
        work (Path): Where its work dir goes.
        threads (int): How many it computes with.

    Returns:
        dict: The cell as it goes into the result file.

    Raises:
        RuntimeError: If ``tools/ptq.py`` fails; its log stays.
    """
    detector, method, bits, seed = cell
    folder = folder_of(cell, work)
    folder.mkdir(parents=True, exist_ok=True)
    files = files_of(detector)
    config = folder / 'cell.py'
    config.write_text(
        f"_base_ = r'{files['config']}'\n"
        f'quant_cfg = {quant_cfg(method, bits, seed, budget)!r}\n'
        f"test_evaluator = dict(outfile_prefix=r'{folder}/predictions')\n"
    )
    log = folder / 'log.txt'
    with open(log, 'w') as out:
        done = subprocess.run(
            [
                sys.executable,
                str(ROOT / 'tools/ptq.py'),
                str(config),
                str(files['checkpoint']),
                '--no-float-eval',
                '--no-report',
                '--resume',
                '--work-dir',
                str(folder),
            ],
            cwd=ROOT,
            env=dict(os.environ, OMP_NUM_THREADS=str(threads)),
            stdout=out,
            stderr=out,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f'{cell}: exit code {done.returncode}, see {log}')
    found = json.loads((folder / 'ptq_result.json').read_text())
    units = found.get('reconstruction', [])
    mask = found['quantized'].get('coco/segm_mAP')
    return dict(
        detector=detector,
        recipe=method,
        bits=bits,
        seed=seed,
        metric='coco/bbox_mAP',
        quantized=found['quantized']['coco/bbox_mAP'],
        **({} if mask is None else dict(mask=mask)),
        # what bits were allocated, and what that was seen to do
        **({'budget': found['budget']} if found.get('budget') else {}),
        seconds=round(sum(found['seconds'].values()), 1),
        evaluation_seconds=round(found['seconds']['quantized evaluation'], 1),
        peak_rss_mb=found['peak_rss_mb'],
        machine=found['machine'],
        settings=dict(
            budget,
            units=len(units),
            kept=sum(u['kept'] for u in units),
            threads=threads,
        ),
    )


def float_metrics(results: Path) -> dict[str, dict[str, float]]:
    """Float metrics of each detector, from committed result files."""
    cells = json.loads((results / 'zoo.json').read_text())['cells']
    yolox = json.loads((results / 'yolox_nano_uniform_w8a8.json').read_text())
    found = {c['detector']: c['float'] for c in cells if c['float']}
    found[YOLOX] = yolox['float']
    return found
