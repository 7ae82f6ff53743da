# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Says whether two commits quantize the embedded detectors equally.

Every cell is one quantization by each commit's own code, in a copy of its
tree: the zoo (each detector with ``uniform`` at 8 and 4 bits and ``minmax``
at 4) and, at w4a4 with 20 steps a unit, ``reg_ptq`` and ``pd_quant`` of
RetinaNet and ``qdrop`` of Faster R-CNN and DETR. Compared are all metrics and
every tensor of the reloaded artefact, bit for bit. A cell that was run is kept
in the work dir::

    python -m tools.accuracy.compare_commits OLD NEW
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DETECTORS = (
    'retinanet',
    'yolof',
    'faster-rcnn',
    'mask-rcnn_swin',
    'cascade-mask-rcnn_swin',
    'detr',
)
ZOO = (('uniform', 'w8a8'), ('uniform', 'w4a4'), ('minmax', 'w4a4'))
LEARNED = (
    ('retinanet', 'reg_ptq'),
    ('retinanet', 'pd_quant'),
    ('faster-rcnn', 'qdrop'),
    ('detr', 'qdrop'),
)
STEPS = 20
# run by the commit's own code, so it uses nothing but its public functions
DIGEST = """
import hashlib, json, sys
from mmdet.apis import init_detector
from mmdet_ptq import load_quantized
model = init_detector(sys.argv[1], None, device='cpu')
load_quantized(model, sys.argv[2])
named = dict([*model.named_parameters(), *model.named_buffers()])
found = {}
for name, t in named.items():
    data = t.detach().contiguous().numpy()
    digest = hashlib.sha256(data.tobytes()).hexdigest()[:16]
    found[name] = f'{data.dtype}{list(data.shape)} {digest}'
json.dump(found, open(sys.argv[3], 'w'))
"""


def cells() -> dict[str, tuple[str, dict]]:
    """Name of each cell to its detector and ``quant_cfg``."""
    found: dict[str, tuple[str, dict]] = {}
    for detector in DETECTORS:
        for recipe, bits in ZOO:
            cfg = dict(recipe=recipe, bits=bits)
            found[f'{detector}_{recipe}_{bits}'] = detector, cfg
    for detector, recipe in LEARNED:
        steps: dict = dict(iters=STEPS)
        if recipe == 'pd_quant':
            steps['distribution_correction'] = dict(iters=STEPS)
        cfg = dict(
            recipe=recipe, bits='w4a4', pass_args=dict(Reconstruct=steps)
        )
        found[f'{detector}_{recipe}_w4a4_{STEPS}-steps'] = detector, cfg
    return found


def check_out(revision: str, work: Path) -> Path:
    """Copies a commit's tree into the work dir, once.

    Args:
        revision (str): What git takes for a commit.
        work (Path): The work dir.

    Returns:
        Path: Folder of the commit; its tree is in ``tree``.
    """
    sha = _git('rev-parse', '--verify', f'{revision}^{{commit}}').strip()
    folder = work / sha[:12]
    tree = folder / 'tree'
    if not (tree / 'data').exists():
        tree.mkdir(parents=True, exist_ok=True)
        packed = subprocess.run(
            ['git', 'archive', sha], cwd=ROOT, stdout=-1, check=True
        ).stdout
        subprocess.run(['tar', '-x'], cwd=tree, input=packed, check=True)
        (tree / 'data').symlink_to(ROOT / 'data')
    return folder


def _git(*args: str) -> str:
    done = subprocess.run(
        ['git', *args], cwd=ROOT, stdout=-1, stderr=-1, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f'git {" ".join(args)}: {done.stderr.strip()}')
    return done.stdout


def run_cell(folder: Path, name: str, detector: str, cfg: dict) -> dict:
    """Quantizes, tests and reloads one cell by a commit's own code.

    Args:
        folder (Path): From :func:`check_out`.
        name (str): Name of the cell.
        detector (str): Name of an embedded detector.
        cfg (dict): The ``quant_cfg``.

    Returns:
        dict: ``quantized`` and ``storage_mb`` of the result file, and
        ``tensors``: a digest of each tensor of the reloaded artefact.

    Raises:
        RuntimeError: If a command fails; its log stays.
    """
    out = folder / 'cells' / name
    kept = out / 'cell.json'
    if kept.is_file():
        return json.loads(kept.read_text())
    out.mkdir(parents=True, exist_ok=True)
    tree = folder / 'tree'
    config = out / 'cell.py'
    config.write_text(
        f"_base_ = r'{tree / 'configs/digits' / detector}_digits.py'\n"
        f'quant_cfg = {cfg!r}\n'
    )
    checkpoint = tree / f'demo/checkpoints/{detector}_digits.pth'
    _run(
        out,
        tree,
        [
            *('tools/ptq.py', config, checkpoint),
            *('--no-float-eval', '--work-dir', out),
        ],
    )
    artefact, digest = out / 'quantized.pth', out / 'tensors.json'
    _run(out, tree, ['-c', DIGEST, config, artefact, digest])
    result = json.loads((out / 'ptq_result.json').read_text())
    found = dict(
        quantized=result['quantized'],
        storage_mb=result['storage_mb'],
        tensors=json.loads(digest.read_text()),
    )
    kept.write_text(json.dumps(found, indent=1))
    return found


def _run(out: Path, tree: Path, args: list) -> None:
    with open(out / 'log.txt', 'a') as log:
        done = subprocess.run(
            [sys.executable, *map(str, args)],
            cwd=tree,
            env=dict(os.environ, PYTHONPATH=str(tree), OMP_NUM_THREADS='1'),
            stdout=log,
            stderr=log,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f'{out.name} failed, see {out / "log.txt"}')


def difference(old: dict, new: dict) -> list[str]:
    """What two runs of one cell do not share, a line each.

    Args:
        old (dict): From :func:`run_cell`.
        new (dict): Likewise, of the other commit.

    Returns:
        list[str]: Empty if they are equal.
    """
    lines = []
    for part in ('quantized', 'storage_mb'):
        for key in sorted({*old[part], *new[part]}):
            pair = old[part].get(key), new[part].get(key)
            if pair[0] != pair[1]:
                lines.append(f'{key}: {pair[0]} -> {pair[1]}')
    names = sorted({*old['tensors'], *new['tensors']})
    other = [
        n for n in names if old['tensors'].get(n) != new['tensors'].get(n)
    ]
    if other:
        lines.append(
            f'{len(other)} of {len(names)} tensors: {", ".join(other[:4])}'
            + (' ...' if len(other) > 4 else '')
        )
    return lines


def main() -> int:
    """Prints a line for each cell; returns 1 if one differs."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('old', help='a commit')
    parser.add_argument('new', nargs='?', help='another; default: only run')
    parser.add_argument(
        '--cells', nargs='*', choices=list(cells()), default=list(cells())
    )
    parser.add_argument('--jobs', type=int, default=2)
    parser.add_argument('--work-dir', default='work_dirs/commits')
    args = parser.parse_args()
    work = Path(args.work_dir).resolve()
    folders = [check_out(r, work) for r in (args.old, args.new) if r]
    todo = cells()
    with ThreadPoolExecutor(args.jobs) as pool:
        jobs = {
            name: [
                pool.submit(run_cell, folder, name, *todo[name])
                for folder in folders
            ]
            for name in args.cells
        }
        differing = 0
        for name, runs in jobs.items():
            found = [run.result() for run in runs]
            boxes = found[0]['quantized']['coco/bbox_mAP']
            lines = difference(found[0], found[-1])
            differing += bool(lines)
            state = 'differs' if lines else 'equal'
            if len(found) == 1:
                state = 'run'
            tensors = len(found[0]['tensors'])
            print(
                f'{state:8} {name}: box AP {boxes:.3f}, {tensors} tensors',
                *lines,
                sep='\n         ',
                flush=True,
            )
    if len(folders) == 2:
        print(f'{len(jobs) - differing} of {len(jobs)} cells are equal')
    return int(differing > 0)


if __name__ == '__main__':
    sys.exit(main())
