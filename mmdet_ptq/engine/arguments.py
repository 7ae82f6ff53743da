# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Looks at what a user gives for a run, before any work."""

import sys
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import BaseModel, is_model_wrapper
from torch import nn
from torch.utils.data import Dataset

from ..checks import annotated
from ..errors import CalibrationError, PTQError, QuantConfigError, unknown
from ..layers import quant_layers

#: options of a run, ``ptq_cfg`` of a config, with their defaults
OPTIONS = dict(
    resume=False,
    float_eval=False,
    trust_checkpoint=False,
    artefact='quantized.pth',
    report=True,
)


def run_options(given: Any) -> dict[str, Any]:
    """The options of a run, those that are not given at their defaults.

    Args:
        given (Any): ``ptq_cfg`` of a config; None if it has none.

    Raises:
        QuantConfigError: If it is no dict, or a key or a type is wrong.
    """
    if given is None:
        return dict(OPTIONS)
    if not isinstance(given, dict):
        raise QuantConfigError(
            f'ptq_cfg: expected a dict, got {given!r}; write e.g. '
            'dict(float_eval=True)'
        )
    for key, value in given.items():
        if key not in OPTIONS:
            raise QuantConfigError('ptq_cfg: ' + unknown('key', key, OPTIONS))
        try:
            annotated(key, value, type(OPTIONS[key]))
        except ValueError as error:
            raise QuantConfigError(f'ptq_cfg: {error}') from None
    return {**OPTIONS, **given}


def check_file_arguments(
    kind: type, first: Any, path: Any, advice: str
) -> None:
    """Refuses arguments of a save or load that are swapped or of other types.

    Args:
        kind (type): What the first has to be.
        first (Any): What was given as such.
        path (Any): What was given as a path.
        advice (str): Says which arguments there are.

    Raises:
        PTQError: Says what was given and what to give.
    """
    if not isinstance(first, kind):
        raise PTQError(f'the first argument is a {_kind(first)}; {advice}')
    if not isinstance(path, str | Path):
        raise PTQError(f'the path is a {_kind(path)}; {advice}')


def check_model(model: Any) -> None:
    """Refuses what is no float detector.

    Args:
        model (Any): What was given as one.

    Raises:
        PTQError: Says what it is and what to give.
    """
    if not isinstance(model, nn.Module):
        raise PTQError(
            f'the model is a {_kind(model)}, not a detector; arguments are '
            'model, dataloader and quant_cfg, in this order, and '
            'mmdet.apis.init_detector(config, checkpoint) gives a model'
        )
    if any(_is_compiled(module) for module in model.modules()):
        raise PTQError(
            'this detector is compiled (torch.compile) or scripted '
            '(torch.jit); quantize it as it was before, then compile it'
        )
    if is_model_wrapper(model):
        raise PTQError(
            f'this detector is wrapped in {_kind(model)}; give what is '
            'inside, model.module'
        )
    if quant_layers(model):
        raise PTQError(
            'this detector is quantized already; build it anew from its '
            'config and load its float checkpoint'
        )
    if any(t.is_inference() for t in model.state_dict().values()):
        raise PTQError(
            'this detector was made or loaded under torch.inference_mode, so '
            'its weights cannot have gradients; make it outside of that'
        )
    if not isinstance(model, BaseModel):
        raise PTQError(
            f'{_kind(model)} is no detector of MMDetection (no subclass of '
            'mmengine.model.BaseModel); give the whole detector, e.g. from '
            'mmdet.apis.init_detector'
        )


def _is_compiled(module: nn.Module) -> bool:
    # loaded by the first compilation, and slow to load
    dynamo = sys.modules.get('torch._dynamo')
    return (
        (dynamo is not None and isinstance(module, dynamo.OptimizedModule))
        or isinstance(module, torch.jit.ScriptModule)
        # by module.compile(), which keeps the class
        or module._compiled_call_impl is not None
    )


def take_batches(dataloader: Iterable[dict], count: int) -> list[dict]:
    """The first batches of a dataloader.

    Args:
        dataloader (Iterable[dict]): Batches as ``model.test_step`` takes
            them.
        count (int): How many at most.

    Returns:
        list[dict]: At least one.

    Raises:
        CalibrationError: If it is no dataloader, is empty, or its batches
            are of another form; says what is wrong and what to give.
    """
    wrong = _why_no_dataloader(dataloader)
    if wrong:
        raise CalibrationError(
            f'the dataloader is {wrong}; give batches as model.test_step '
            'takes them, e.g. Runner.build_dataloader(cfg.test_dataloader) '
            'or a list of dicts'
        )
    batches = []
    for i, batch in enumerate(islice(dataloader, count)):
        _check_batch(i, batch)
        batches.append(batch)
    if not batches:
        raise CalibrationError('the dataloader gave no batch')
    return batches


def _why_no_dataloader(given: Any) -> str:
    """What was given instead of a dataloader, '' if it may be one."""
    if isinstance(given, nn.Module):
        return (
            f'a model ({_kind(given)}): arguments are model, dataloader and '
            'quant_cfg, in this order'
        )
    if isinstance(given, str | Path):
        return f'a path ({str(given)!r})'
    if isinstance(given, Dataset):
        return f'a dataset ({_kind(given)})'
    if isinstance(given, Mapping) and 'inputs' in given:
        return 'a single batch'
    if isinstance(given, Mapping | Config) or not isinstance(given, Iterable):
        return f'a {_kind(given)}'
    return f'a {_kind(given)}' if isinstance(given, torch.Tensor) else ''


def _check_batch(i: int, batch: Any) -> None:
    if not isinstance(batch, Mapping) or 'inputs' not in batch:
        what = f'a {_kind(batch)}'
        if isinstance(batch, Mapping):
            what = f'a dict with the keys {", ".join(map(str, batch))}'
        raise CalibrationError(
            f'batch {i} of the dataloader is {what}; model.test_step takes '
            "a dict with 'inputs' (a list of images) and 'data_samples', as "
            "MMDetection's test pipelines make it"
        )
    inputs = batch['inputs']
    if isinstance(inputs, torch.Tensor) and inputs.dim() == 3:
        raise CalibrationError(
            f'batch {i} of the dataloader is a single image of shape '
            f'{tuple(inputs.shape)}; collate it, e.g. by '
            'mmengine.dataset.pseudo_collate'
        )


def _kind(given: Any) -> str:
    return type(given).__name__
