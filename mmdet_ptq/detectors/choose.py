# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Which adapter runs the detector for the losses of a pass."""

from torch import nn

from ..structures import LayerGraph
from .base import Adapter, PredictionAdapter, find_adapter, has_adapter


def why_no_outputs(model: nn.Module, graph: LayerGraph) -> str:
    """Why a detector has no outputs that a loss could compare.

    Args:
        model (nn.Module): The detector.
        graph (LayerGraph): Its survey.

    Returns:
        str: A sentence without its end, '' if it has.
    """
    if graph.raw or has_adapter(model):
        return ''
    return (
        f'no detector adapter covers {type(model).__name__}, and its raw '
        "mode (mode='tensor') does not run or returns no tensor"
    )


def adapter_for(
    model: nn.Module, graph: LayerGraph, on_outputs: bool
) -> Adapter:
    """The adapter for losses on the detector's outputs, or on units alone.

    Args:
        model (nn.Module): The detector.
        graph (LayerGraph): Its survey.
        on_outputs (bool): Whether a loss reads the detector's outputs.
            Without one, a detector that no adapter covers and whose raw
            mode does not run all that is deployed predicts instead.

    Returns:
        Adapter: With mask logits, where it has them.
    """
    raw = graph.raw and (on_outputs or graph.mode == 'tensor')
    if raw or has_adapter(model):
        return find_adapter(model, mask=True)
    return PredictionAdapter()
