# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What a layer is for, read off the trace.

Module names decide nothing but the component: ``backbone``, ``neck``,
``rpn_head`` and ``mask_head`` are the attributes by which MMDetection's
detectors are built, hence part of its interface.
"""

from ..layers import InputLayerNorm, PositionLinear
from ..structures import Op, Port
from .vocabulary import GELU, PRODUCTS, RANKING, SOFTMAX, canonical
from .walk import Walker

_CARRY = ('shape', 'pointwise')
_FEATURES = frozenset({'backbone', 'neck'})


def component_roles(name: str) -> frozenset[str]:
    """Roles by the part of the detector that a layer belongs to.

    Args:
        name (str): Module name.

    Returns:
        frozenset[str]: ``backbone``, ``neck`` or ``head``; also ``rpn`` in
        an ``rpn_head`` and ``mask`` in any ``mask_head``.
    """
    parts = name.split('.')
    # a detector may sit in a wrapper (`detector.backbone...`)
    for part in parts[:2]:
        if part in _FEATURES:
            return frozenset({part})
    roles = {'head'}
    if 'rpn_head' in parts[:2]:
        roles.add('rpn')
    if 'mask_head' in parts:
        roles.add('mask')
    return frozenset(roles)


def _names(ops: list[Op], walker: Walker) -> set[str]:
    return {op.module for op in ops if walker.kind(op) == 'layer'}


def stem(walker: Walker) -> set[str]:
    """Layers that read the image, but for element-wise ops and norms."""
    images = [v.id for v in walker.values.values() if v.is_input]
    ends = walker.ahead(images, (*_CARRY, 'norm'))
    return _names([op for op, place in ends if place == 0], walker)


def _is_feature(walker: Walker, output: int) -> bool:
    """Whether a raw output is also the input of a further layer.

    Hidden states that a forward returns beside its predictions are; a
    detached tensor is a prediction that steers another branch.
    """
    todo = [output]
    while todo:
        for op, place in walker.readers[todo.pop()]:
            if walker.kind(op) == 'layer' and place == 0:
                return True
            if (
                walker.kind(op) == 'shape'
                and place == 0
                and op.name != 'detach'
            ):
                todo += op.outputs
    return False


def prediction(walker: Walker) -> set[str]:
    """Layers whose output becomes a score, a box or a mask.

    Sources of the walk are the raw outputs, boxes that RoIAlign reads,
    arguments of NMS, and scores that are ranked.
    """
    sinks = [
        o
        for o in walker.record.outputs
        if walker.values[o].floating and not _is_feature(walker, o)
    ]
    for op in walker.ops:
        name = canonical(op.name)
        if 'roialign' in name or 'roipool' in name:
            sinks += op.inputs[1:]
        elif 'nms' in name:
            sinks += op.inputs
        elif name in RANKING and not (component_roles(op.scope) & _FEATURES):
            sinks += op.inputs[:1]
    found = _names(walker.back(sinks, _CARRY), walker)
    # pyramid features can be raw outputs too (proposal-only detectors)
    return {n for n in found if not component_roles(n) & _FEATURES}


def offset(walker: Walker) -> set[str]:
    """Layers that say where a deformable op samples."""
    places: list[int] = []
    for op in walker.ops:
        name = canonical(op.name)
        if 'multiscaledeform' in name:
            # value, shapes, level starts, locations, attention weights
            places += op.inputs[3:4]
        elif name == 'gridsample' or 'deform' in name:
            places += op.inputs[1:]
    return _names(walker.back(places, _CARRY), walker)


def position(walker: Walker) -> set[str]:
    """Layers that project positional encodings and nothing else."""
    modules = walker.record.modules
    return {n for n in walker.calls if isinstance(modules[n], PositionLinear)}


def norm(walker: Walker) -> set[str]:
    """Norms whose input can be quantized."""
    modules = walker.record.modules
    return {n for n in walker.calls if isinstance(modules[n], InputLayerNorm)}


def _made_by(walker: Walker, value: int, words: frozenset[str]) -> bool:
    """Whether a value comes from such an op through shape ops alone."""
    op = walker.producer(value)
    while op is not None and canonical(op.name) not in words:
        inputs = walker.carried(op)
        if walker.kind(op) != 'shape' or not inputs:
            return False
        op = walker.producer(inputs[0])
    return op is not None


def port_roles(
    walker: Walker, ports: dict[str, tuple[str, ...]]
) -> dict[Port, set[str]]:
    """What kind of tensor arrives at each port, in all its calls.

    Args:
        walker (Walker): The trace.
        ports (dict[str, tuple[str, ...]]): Ports of each layer.

    Returns:
        dict[Port, set[str]]: A subset of ``softmax gelu query key`` for each
        port.
    """
    found: dict[Port, set[str]] = {}
    for name, calls in walker.calls.items():
        for place, port in enumerate(ports[name]):
            reads = [c.inputs[place] for c in calls if place < len(c.inputs)]
            found[name, port] = {
                role
                for role, words in (('softmax', SOFTMAX), ('gelu', GELU))
                if reads and all(_made_by(walker, v, words) for v in reads)
            }
    for op in walker.ops:
        if _reads_softmax(op, walker, ports):
            for product in _products_before(op, walker, ports):
                for port, role in (('a', 'query'), ('b', 'key')):
                    if (product.module, port) in found:
                        found[product.module, port].add(role)
    return found


def _is_product(
    op: Op, walker: Walker, ports: dict[str, tuple[str, ...]]
) -> bool:
    if op.module:
        return len(ports.get(op.module, ())) == 2
    return canonical(op.name) in PRODUCTS


def _reads_softmax(
    op: Op, walker: Walker, ports: dict[str, tuple[str, ...]]
) -> bool:
    """Whether it is a product of which an operand comes from a softmax."""
    return _is_product(op, walker, ports) and any(
        _made_by(walker, v, SOFTMAX) for v in op.inputs[:2]
    )


def _products_before(
    op: Op, walker: Walker, ports: dict[str, tuple[str, ...]]
) -> list[Op]:
    """Products that give the softmax which a product reads."""
    logits = walker.back(
        [s.inputs[0] for s in _softmaxes(walker, list(op.inputs[:2]))],
        _CARRY,
        lambda o: not _is_product(o, walker, ports),
    )
    return [o for o in logits if _is_product(o, walker, ports)]


def attention(walker: Walker, ports: dict[str, tuple[str, ...]]) -> set[str]:
    """Projections and products around softmax(q k) v.

    Args:
        walker (Walker): The trace.
        ports (dict[str, tuple[str, ...]]): Ports of each layer.

    Returns:
        set[str]: Names of the layers.
    """
    found: set[str] = set()
    for op in walker.ops:
        if canonical(op.name) == 'scaleddotproductattention':
            reads = list(op.inputs)
        elif _reads_softmax(op, walker, ports):
            reads = list(op.inputs[:2])
            products = _products_before(op, walker, ports)
            if not products:
                continue
            for product in products:
                found |= _names([product], walker)
                reads += product.inputs[:2]
            found |= _names([op], walker)
        else:
            continue
        sources = walker.back(
            reads, _CARRY, lambda o: canonical(o.name) not in SOFTMAX
        )
        found |= _names(sources, walker)
        found |= _names(
            [o for o, _ in walker.ahead(op.outputs, ('shape',))], walker
        )
    return found


def _softmaxes(walker: Walker, reads: list[int]) -> list[Op]:
    ends = walker.back(reads, ('shape',))
    return [op for op in ends if canonical(op.name) in SOFTMAX]
