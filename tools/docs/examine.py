# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Builds one random detector of a family, quantizes it and compares."""

import copy
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmdet.models.roi_heads.roi_extractors import BaseRoIExtractor
from torch import Tensor, nn

from mmdet_ptq import quantize_detector
from mmdet_ptq.testing import (
    bfloat16,
    cosine,
    noise_batches,
    random_detector,
    raw_outputs,
    settle_batch_norms,
)
from tools.docs.messages import said
from tools.docs.run_once import runner_run
from tools.docs.tiny_bert import TEXT

#: two for calibration; one value a channel is left of a pooled feature map,
#: and a batch norm there needs more than two of them
_IMAGES = 8
#: a network is drawn again where bfloat16 changes its output more than this:
#: eight bits of an activation's whole range err by about 10 dB more
_TELLING = 0.999


def empty_row(**known: Any) -> dict:
    """A row of the matrix before anything has worked.

    Args:
        **known (Any): What is known already.

    Returns:
        dict: ``config`` and image ``size`` (height, width) that were used,
        whether the ``heads`` started as MMDetection starts them, ``built``,
        ``float_ok``, ``quantized``, ``predicts``, ``layers``,
        ``left_float``, ``cosine``, ``bfloat16`` (the cosine that the float
        model has in bfloat16), ``seconds``, ``why``; whether it went through
        the ``runner`` ('yes', why not, or nothing if it was not tried), what
        of the config was ``replaced`` for that, and how many objects were
        ``detected``; the optional packages that were there (``extras``, name
        to version), and why the family failed ``without`` them.
    """
    row: dict[str, Any] = dict(
        config='',
        size=None,
        heads=False,
        built=False,
        float_ok=False,
        quantized=False,
        predicts=False,
        layers=0,
        left_float={},
        cosine=None,
        bfloat16=None,
        seconds=0.0,
        why='',
        runner='',
        replaced='',
        detected=None,
        extras={},
        without='',
    )
    return {**row, **known}


class FloatRun(NamedTuple):
    """A detector that runs in float.

    Attributes:
        model (nn.Module): The detector.
        data (list[dict]): Two batches of one image.
        memory (dict): What was selected.
        expected (list[Tensor]): Raw outputs on the first batch.
    """

    model: nn.Module
    data: list[dict]
    memory: dict
    expected: list[Tensor]


def draw(
    path: Path, size: tuple[int, int], heads: bool, row: dict
) -> FloatRun:
    """Builds a detector and runs it in float.

    Args:
        path (Path): Its config.
        size (tuple[int, int]): Height and width of the images.
        heads (bool): See :func:`random_detector`.
        row (dict): Told when the detector is built.

    Returns:
        FloatRun: What the quantized run is to be compared with.
    """
    model = random_detector(path, heads)
    row['built'] = True
    second_stage = not getattr(model, 'with_rpn', True)
    images = noise_batches(_IMAGES, size, 64 if second_stage else 0)
    for batch in images:
        # read by those that have a language model alone
        batch['data_samples'][0].set_metainfo(
            dict(text=TEXT, custom_entities=True)
        )
    try:
        settle_batch_norms(model, images)
    except Exception:
        model.eval()  # no raw mode, or one sample for a batch norm
    memory: dict = {}
    model.test_step(copy.deepcopy(images[0]))
    expected = raw_outputs(model, images[0], memory)
    return FloatRun(model, images[:2], memory, expected)


def resolution(run: FloatRun) -> float:
    """How alike the outputs stay where quantization is not to blame.

    Args:
        run (FloatRun): The float run.

    Returns:
        float: Cosine of the detector in bfloat16; 0 if a RoI extractor
        returns zeros, since all its boxes lie outside the image and what
        follows is made of biases alone.
    """
    empty = []
    hooks = [
        m.register_forward_hook(lambda *a: empty.append(not a[2].any()))
        for m in run.model.modules()
        if isinstance(m, BaseRoIExtractor)
    ]
    try:
        with bfloat16(run.model):
            rounded = raw_outputs(run.model, run.data[0], run.memory)
    finally:
        for hook in hooks:
            hook.remove()
    return 0.0 if any(empty) else cosine(run.expected, rounded)


def float_run(
    path: Path,
    size: tuple[int, int],
    draw: Callable[..., Any] = draw,
    resolution: Callable[[Any], float] = resolution,
) -> tuple[dict, FloatRun | None]:
    """Draws a detector until its outputs can tell something.

    Args:
        path (Path): Its config.
        size (tuple[int, int]): Height and width of the smallest images.
        draw (Callable): See :func:`draw`.
        resolution (Callable): See :func:`resolution`.

    Returns:
        tuple[dict, FloatRun | None]: Its row, and the first that can tell
        something, else the one that bfloat16 changes least; None if no
        drawing runs.
    """
    best: tuple[dict, FloatRun | None] | None = None
    failed = empty_row(config=path.name, size=list(size))
    tries = [(1, False), (2, False), (4, False), (1, True)]
    while tries:
        scale, heads = tries.pop(0)
        larger = (scale * size[0], scale * size[1])
        row = empty_row(config=path.name, size=list(larger), heads=heads)
        try:
            with torch.no_grad():
                run = draw(path, larger, heads, row)
                row['bfloat16'] = round(resolution(run), 5)
        except Exception as error:
            row['why'] = said(error)
            # what the largest images failed with is told
            failed = failed if heads else row
            # neither is a matter of size
            if not row['built'] or isinstance(error, ImportError):
                break
            continue
        row['float_ok'] = True
        if best is None or row['bfloat16'] > best[0]['bfloat16']:
            best = (row, run)
        # larger images are for those that do not run
        tries = [(scale, True)]
        if heads or row['bfloat16'] >= _TELLING:
            break
    return best or (failed, None)


def quantized_run(run: FloatRun, row: dict) -> None:
    """Quantizes a detector and compares.

    Args:
        run (FloatRun): The float run; its model is quantized in place.
        row (dict): Filled in.
    """
    session = quantize_detector(
        run.model, copy.deepcopy(run.data), dict(recipe='uniform', bits='w8a8')
    )
    row['quantized'] = True
    plans = session.plan.layers.values()
    row['layers'] = sum(1 for p in plans if not p.why_float)
    left = [p.why_float for p in plans if p.why_float]
    left += list(session.plan.uncovered.values())
    left += ['not called'] * len(session.graph.uncalled)
    row['left_float'] = {w: left.count(w) for w in sorted(set(left))}
    found = raw_outputs(run.model, run.data[0], run.memory)
    row['cosine'] = round(cosine(run.expected, found), 5)
    # as MMEngine's test loop does; some heads write into views
    with torch.no_grad():
        results = run.model.test_step(copy.deepcopy(run.data[1]))
    row['predicts'] = _finite(results) and all(
        bool(torch.isfinite(t).all()) for t in found
    )


def examine(paths: list[Path], size: tuple[int, int]) -> Iterator[dict]:
    """Builds, quantizes and runs one detector of a family.

    Args:
        paths (list[Path]): Its configs; the first that runs in float is
            used, of the first three.
        size (tuple[int, int]): Height and width of the images in pixels.

    Yields:
        dict: See :func:`empty_row`; what is known before the config goes
        through the runner, and, if it does, after that.
    """
    start = time.perf_counter()
    row = empty_row(config=paths[0].name, size=list(size))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path in paths[:3]:
            found, run = float_run(path, size)
            # what is wrong with the smallest is told if none runs
            if run is not None or path is paths[0]:
                row = found
            if run is not None:
                weights = dict(state_dict=run.model.state_dict())
                torch.save(weights, folder / 'float.pth')
                try:
                    quantized_run(run, row)
                except Exception as error:
                    row['why'] = said(error)
                break
        _measure(row, start)
        yield dict(row)
        # the detector of the runner needs its memory
        run = weights = None
        if row['predicts']:
            runner_run(path, folder, row)
            _measure(row, start)
            yield row


def _measure(row: dict, start: float) -> None:
    """Notes the time since the start and the memory of the process."""
    row['seconds'] = round(time.perf_counter() - start, 1)
    row['peak_mb'] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _finite(results: list) -> bool:
    """Whether every float field of every detection is finite.

    Args:
        results (list): Data samples.

    Returns:
        bool: True also where nothing was detected.
    """
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
