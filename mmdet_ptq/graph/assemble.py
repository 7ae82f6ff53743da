# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""From one forward to a LayerGraph."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..structures import LayerGraph, LayerNode
from . import roles
from .fold import find_bn_folds
from .levels import find_levels
from .links import norm_links, shared_ports
from .record import Trace, tensors_in
from .scalings import finder
from .sharing import Sharing, find_sharing
from .tracer import Recorder
from .units import find_units
from .walk import Walker


def survey(
    model: nn.Module,
    forward: Callable[[], Any],
    images: Sequence[Tensor] | None = None,
    *,
    is_leaf: Callable[[nn.Module], bool],
    ports: Callable[[nn.Module], tuple[str, ...]],
) -> LayerGraph:
    """Runs a model once and says how its layers hang together.

    Nothing is left behind in the model, also if ``forward`` raises.

    Args:
        model (nn.Module): A detector in eval mode.
        forward (Callable): Runs one forward, e.g. ``lambda: model(inputs,
            samples, mode='tensor')``; what it returns are the raw outputs.
        images (Sequence[Tensor], optional): Image batches of shape (N, C,
            H, W). By default those that the model is called with.
        is_leaf (Callable): Whether a module is a quantizable layer.
        ports (Callable): Names of the quantizable inputs of such a layer,
            in the order of its arguments.

    Returns:
        LayerGraph: The graph.
    """
    record = trace(model, forward, images, is_leaf)
    graph = assemble(record, is_leaf, ports)
    graph.find_scalings = finder([record], graph.bn_folds, is_leaf, ports)
    return graph


def assemble(
    record: Trace,
    is_leaf: Callable[[nn.Module], bool],
    ports: Callable[[nn.Module], tuple[str, ...]],
) -> LayerGraph:
    """Says how the layers of a recorded forward hang together.

    What can be scaled is for :func:`finder` to find out, of all forwards.

    Args:
        record (Trace): From :func:`trace`.
        is_leaf (Callable): Whether a module is a quantizable layer.
        ports (Callable): Names of the quantizable inputs of such a layer.

    Returns:
        LayerGraph: The graph.
    """
    walker = Walker(record, is_leaf)
    names = {n: ports(record.modules[n]) for n in walker.calls}
    levels, heads = find_levels(walker)
    sharing = find_sharing(walker)
    folds, kept = find_bn_folds(walker, sharing)
    uncalled = [
        name
        for name, module in record.modules.items()
        if is_leaf(module) and name not in walker.calls
    ]
    return LayerGraph(
        ops=record.ops,
        values=record.values,
        layers=_layers(walker, names, sharing),
        bn_folds=folds,
        kept_norms=kept,
        norm_links=norm_links(walker, names),
        shared_ports=shared_ports(walker, names),
        units=find_units(walker),
        uncalled=uncalled,
        outputs=record.outputs,
        levels=levels,
        heads=heads,
        products={
            name: f'multiplies outside of layers ({", ".join(functions)})'
            for name, functions in record.products.items()
        },
        borrowed=_borrowed(record, uncalled),
    )


def _borrowed(record: Trace, uncalled: list[str]) -> dict[str, str]:
    """Those of the layers whose parameters are read all the same."""
    found = {}
    for name in uncalled:
        for parameter in record.modules[name].parameters(recurse=False):
            where = record.reads.get(id(parameter))
            if where is not None:
                place = f' (in {where})' if where else ''
                found[name] = f'weight used without calling the layer{place}'
    return found


def _layers(
    walker: Walker, ports: dict[str, tuple[str, ...]], sharing: Sharing
) -> dict[str, LayerNode]:
    prediction = roles.prediction(walker)
    found = {
        'stem': roles.stem(walker),
        'prediction': prediction,
        # boxes that steer the sampling of the next decoder layer are
        # predictions first
        'offset': roles.offset(walker) - prediction,
        'attention': roles.attention(walker, ports),
        'position': roles.position(walker),
        'norm': roles.norm(walker),
    }
    arriving = roles.port_roles(walker, ports)
    nodes = {}
    for name, calls in walker.calls.items():
        module = walker.record.modules[name]
        nodes[name] = LayerNode(
            name=name,
            cls=type(module),
            calls=calls,
            ports=ports[name],
            roles=roles.component_roles(name)
            | {role for role, names in found.items() if name in names},
            port_roles={p: frozenset(arriving[name, p]) for p in ports[name]},
            groups=int(getattr(module, 'groups', 1)),
            params=sum(p.numel() for p in module.parameters(recurse=False)),
            shares=sharing.why.get(name, ''),
            tied=sharing.tied.get(name, ()),
            held=name in sharing.held,
        )
    return nodes


def trace(
    model: nn.Module,
    forward: Callable[[], Any],
    images: Sequence[Tensor] | None,
    is_leaf: Callable[[nn.Module], bool],
) -> Trace:
    """Runs ``forward`` once and records it.

    Args:
        model (nn.Module): The model, in eval mode.
        forward (Callable): Runs the model; called once without gradients.
        images (Sequence[Tensor], optional): The image batches. By default
            the 4-D floating tensors that the model is called with.
        is_leaf (Callable): Whether a module is a quantizable leaf.

    Returns:
        Trace: The record.
    """
    recorder = Recorder(model, is_leaf)
    for tensor in images or ():
        recorder.mark_image(tensor)
    with torch.no_grad(), recorder.watching():
        result = forward()
    record = recorder.trace
    record.outputs = tuple(
        dict.fromkeys(
            number
            for number in map(recorder.id_of, tensors_in(result))
            if number is not None and record.values[number].producer >= 0
        )
    )
    _ensure_image(record)
    return record


def _ensure_image(record: Trace) -> None:
    # when `forward` does not go through `model.__call__`, the first layer
    # is taken to read the images
    if any(v.is_input for v in record.values.values()):
        return
    for op in record.ops:
        for number in op.inputs[:1]:
            value = record.values[number]
            if value.producer < 0 and len(value.shape) == 4:
                record.values[number] = replace(value, is_input=True)
                return
