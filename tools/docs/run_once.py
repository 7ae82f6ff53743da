# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""One config through PTQRunner, as a user runs it, on a tiny data set.

Model, pipelines, hooks and evaluator are the config's own as far as they can
run on such data; what was put in their place is told.
"""

import io
import json
import pickle
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import RUNNERS

from mmdet_ptq.cli import main
from mmdet_ptq.testing import config_path
from tools.docs.adapt_config import adapt
from tools.docs.messages import said, without_folders

_PREDICTIONS = 'predictions.pkl'


class RunError(Exception):
    """The command ended with an error, or the artefact loads as another."""


def run_once(
    path: Path, checkpoint: Path, folder: Path, size: Sequence[int]
) -> tuple[str, int | None]:
    """Quantizes by the command, loads the artefact and compares.

    Args:
        path (Path): A config that MMDetection ships.
        checkpoint (Path): Float weights of its detector.
        folder (Path): Empty; data and results go there.
        size (Sequence[int]): Height and width of the images in pixels.

    Returns:
        tuple[str, int | None]: What the config's own was replaced by, and
        :func:`detections`.

    Raises:
        RunError: If the command fails, or the artefact tests as something
            else than what was saved.
    """
    cfg = Config.fromfile(str(config_path(path)))
    notes = adapt(cfg, folder / 'data', (size[0], size[1]))
    config, work = folder / path.name, folder / 'work'
    out = folder / _PREDICTIONS
    cfg.test_evaluator.append(
        dict(type='DumpDetResults', out_file_path=str(out))
    )
    cfg.dump(str(config))
    quantize(config, checkpoint, work)
    metrics = json.loads((work / 'ptq_result.json').read_text())['quantized']
    predictions = pickle.loads(out.read_bytes())
    out.unlink()
    again = reload(work / path.name, work / 'quantized.pth')
    if again != metrics:
        raise RunError(f'saved: {metrics}; loaded: {again}')
    if not same(pickle.loads(out.read_bytes()), predictions):
        raise RunError('the loaded artefact predicts other values')
    return '; '.join(notes), detections(predictions)


def detections(predictions: list[dict]) -> int | None:
    """How many objects were detected.

    Args:
        predictions (list[dict]): Of each image.

    Returns:
        int | None: None where segments are predicted and no objects.
    """
    found = [p['pred_instances'] for p in predictions if 'pred_instances' in p]
    return sum(len(one['scores']) for one in found) if found else None


def runner_run(
    path: Path,
    folder: Path,
    row: dict,
    run_once: Callable[..., tuple[str, int | None]] = run_once,
) -> None:
    """Runs the config once as a user would.

    Args:
        path (Path): The config.
        folder (Path): Holds its float weights as ``float.pth``.
        row (dict): Filled in.
        run_once (Callable): See :func:`run_once`.
    """
    try:
        row['replaced'], row['detected'] = run_once(
            path, folder / 'float.pth', folder, row['size']
        )
        row['runner'] = 'yes'
    except RunError as error:
        row['runner'] = without_folders(str(error))
    except Exception as error:
        row['runner'] = said(error)


def quantize(config: Path, checkpoint: Path, work: Path) -> None:
    """Runs ``mmdet-ptq quantize`` on two images.

    Args:
        config (Path): A config.
        checkpoint (Path): Its float weights.
        work (Path): The work dir.

    Raises:
        RunError: With the command's own message, if it fails.
    """
    words = [
        *('quantize', str(config), str(checkpoint)),
        *('--recipe', 'uniform', '--bits', 'w8a8', '--calib-num', '2'),
        *('--no-float-eval', '--device', 'cpu', '--work-dir', str(work)),
    ]
    errors = io.StringIO()
    with redirect_stderr(errors):
        code = main(words)
    if code:
        raise RunError(errors.getvalue().strip().removeprefix('error: '))


def reload(config: Path, artefact: Path) -> dict:
    """Tests a quantized file, as MMDetection's ``tools/test.py`` does.

    Args:
        config (Path): The config in the work dir.
        artefact (Path): The quantized file.

    Returns:
        dict: Metrics.
    """
    cfg = Config.fromfile(str(config))
    cfg.load_from = str(artefact)
    return RUNNERS.build(cfg).test()


def same(a: Any, b: Any) -> bool:
    """Whether two nested results hold equal values.

    Args:
        a (Any): Tensors and plain values in lists and dicts.
        b (Any): Likewise.

    Returns:
        bool: True if equal bit for bit.
    """
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(
            same(v, b[k]) for k, v in a.items()
        )
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    return bool(a == b)
