# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The survey of a detector, and what of it no twin covers."""

from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..errors import CalibrationError, PTQError
from ..graph import Trace, assemble, finder, trace
from ..layers import is_leaf, ports_of
from ..structures import LayerGraph

#: the forwards that are surveyed
MODES = ('tensor', 'predict')


def survey_detector(model: nn.Module, example: dict) -> LayerGraph:
    """Surveys one raw forward and one prediction.

    The raw forward shows what is a prediction; the prediction is what is
    deployed. The graph is that of the raw forward if it calls every layer
    that the prediction calls, else that of the prediction. How often layers
    are called is what the prediction says, where it calls them.

    Args:
        model (nn.Module): A detector in eval mode.
        example (dict): One batch.

    Returns:
        LayerGraph: With the modes that work.

    Raises:
        CalibrationError: If the float model fails in both modes.
        PTQError: If it calls no layer that has a twin.
    """
    records: dict[str, Trace] = {}
    errors = []
    for mode in MODES:
        try:
            records[mode] = _trace(model, example, mode)
        except PTQError:
            raise
        except Exception as error:
            # some detectors of MMDetection have no working raw mode
            errors.append(f'{mode}: {type(error).__name__}: {error}')
    if not records:
        raise CalibrationError(
            'the float model fails on the first calibration image. '
            + ' '.join(errors)
        )
    # what a function reads in one mode holds in all
    reads = {k: v for one in records.values() for k, v in one.reads.items()}
    records = {m: replace(one, reads=reads) for m, one in records.items()}
    graphs = {
        mode: assemble(one, is_leaf, ports_of) for mode, one in records.items()
    }
    useful = {mode: g for mode, g in graphs.items() if g.layers}
    if not useful:
        raise PTQError(
            'this detector calls no layer that can be quantized, neither in '
            'a raw forward nor in a prediction of the first calibration '
            'image; register twins for its layers (mmdet_ptq.registry)'
        )
    graph = _joined(useful)
    graph.find_scalings = finder(
        records.values(), graph.bn_folds, is_leaf, ports_of
    )
    return graph


def run_forward(model: nn.Module, example: dict) -> None:
    """Runs the forwards that :func:`survey_detector` runs.

    One that fails is passed over, as the survey says what is wrong.

    Args:
        model (nn.Module): A detector in eval mode.
        example (dict): One batch.
    """
    data = model.data_preprocessor(_shallow(example), False)
    for mode in MODES:
        with torch.no_grad(), suppress(Exception):
            _forward(model, data, mode)


def _trace(model: nn.Module, example: dict, mode: str) -> Trace:
    data = model.data_preprocessor(_shallow(example), False)
    return trace(model, lambda: _forward(model, data, mode), None, is_leaf)


def _joined(graphs: dict[str, LayerGraph]) -> LayerGraph:
    """The graph of one mode, with what the other says of it."""
    deployed = graphs.get('predict', graphs.get('tensor'))
    mode = 'predict'
    if 'tensor' in graphs and set(deployed.layers) <= set(
        graphs['tensor'].layers
    ):
        mode = 'tensor'
    graph = graphs[mode]
    levels, heads = graph.levels, graph.heads
    if graph is not deployed:
        called = {name.partition('.')[0] for name in deployed.layers}
        levels = {**levels, **deployed.levels}
        others = [one for one in heads if one not in called]
        heads = (*deployed.heads, *others)
    products: dict[str, str] = {}
    for one in graphs.values():
        products.update(one.products)
    folds, kept = _folds(graph, [g for g in graphs.values() if g is not graph])
    return replace(
        graph,
        mode=mode,
        modes=tuple(graphs),
        raw='tensor' in graphs and bool(graphs['tensor'].outputs),
        predicted=frozenset(graphs['predict'].layers)
        if 'predict' in graphs
        else frozenset(),
        levels=levels,
        heads=heads,
        products=products,
        bn_folds=folds,
        kept_norms=kept,
    )


def _folds(
    graph: LayerGraph, others: list[LayerGraph]
) -> tuple[dict[str, str], dict[str, str]]:
    """The folds that are exact in every mode, and the others' reasons."""
    folds, kept = dict(graph.bn_folds), dict(graph.kept_norms)
    for other in others:
        called = {op.module for op in other.ops}
        for norm, layer in graph.bn_folds.items():
            if {norm, layer} & called and other.bn_folds.get(norm) != layer:
                del folds[norm]
                kept[norm] = (
                    f'not folded into {layer}: not every forward runs the '
                    'two one after the other'
                )
    return folds, kept


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


def uncovered_modules(
    model: nn.Module, graph: LayerGraph | None = None
) -> dict[str, str]:
    """What multiplies and has no twin.

    Args:
        model (nn.Module): The detector.
        graph (LayerGraph, optional): Its survey, which has seen the
            products of modules without a weight of their own.

    Returns:
        dict[str, str]: Name of the module to reason.
    """
    found = {}
    for name, why in (graph.products if graph else {}).items():
        found[name or '(detector)'] = why
    for name, module in model.named_modules():
        weight = getattr(module, 'weight', None)
        if is_leaf(module) or not isinstance(weight, torch.Tensor):
            continue
        if weight.dim() >= 2 and not isinstance(module, nn.Embedding):
            found[name] = f'no twin for {type(module).__name__}'
    return found
