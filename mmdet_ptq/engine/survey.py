# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The survey of a detector, and what of it no twin covers."""

from typing import Any

import torch
from torch import nn

from ..errors import CalibrationError, PTQError
from ..graph import survey
from ..layers import is_leaf, ports_of
from ..structures import LayerGraph


def survey_detector(model: nn.Module, example: dict) -> LayerGraph:
    """Surveys one raw forward; falls back to a prediction.

    Args:
        model (nn.Module): A detector in eval mode.
        example (dict): One batch.

    Returns:
        LayerGraph: With the mode that worked.

    Raises:
        CalibrationError: If the float model fails in both modes.
    """
    errors = []
    for mode in ('tensor', 'predict'):
        data = model.data_preprocessor(_shallow(example), False)
        try:
            with torch.no_grad():
                graph = survey(
                    model,
                    lambda data=data, mode=mode: _forward(model, data, mode),
                    is_leaf=is_leaf,
                    ports=ports_of,
                )
            graph.mode = mode
            return graph
        except PTQError:
            raise
        except Exception as error:
            # some detectors of MMDetection have no working raw mode
            errors.append(f'{mode}: {type(error).__name__}: {error}')
    raise CalibrationError(
        'the float model fails on the first calibration image. '
        + ' '.join(errors)
    )


def _forward(model: nn.Module, data: Any, mode: str) -> Any:
    if isinstance(data, dict):
        return model(**data, mode=mode)
    return model(*data, mode=mode)


def _shallow(example: dict) -> dict:
    return {
        k: list(v) if isinstance(v, list) else v for k, v in example.items()
    }


def quantizable_names(model: nn.Module) -> list[str]:
    """Names of all modules that have a twin."""
    return [n for n, m in model.named_modules() if is_leaf(m)]


def uncovered_modules(model: nn.Module) -> dict[str, str]:
    """Modules with a weight matrix of their own that have no twin.

    Args:
        model (nn.Module): The detector.

    Returns:
        dict[str, str]: Name to reason.
    """
    found = {}
    for name, module in model.named_modules():
        weight = getattr(module, 'weight', None)
        if is_leaf(module) or not isinstance(weight, torch.Tensor):
            continue
        if weight.dim() >= 2 and not isinstance(module, nn.Embedding):
            found[name] = f'no twin for {type(module).__name__}'
    return found
