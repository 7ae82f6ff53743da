# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""How far each layer of a quantized detector is from the float one."""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from ..calibration import Session, observing
from ..context import count_images, forward_context
from ..cost import operand_bits, part_of
from ..detectors import Adapter, PredictionAdapter, adapter_for
from ..layers import QuantLayer, float_mode
from ..structures import Port
from .histograms import GridHistogram

#: images that are run, and elements of each output that are compared
IMAGES, ELEMENTS = 4, 4096
#: what is told of an error of zero, in dB
EXACT = 100.0


class _Errors:
    """Sums over compared elements of one layer: f f, e e, f q, q q."""

    def __init__(self) -> None:
        self.sums: Tensor | None = None
        self.whole = True

    def add(self, before: list[Tensor], after: list[Tensor]) -> None:
        """Takes the samples of all calls in one forward of each detector."""
        shapes = [[x.shape for x in side] for side in (before, after)]
        if shapes[0] != shapes[1]:
            self.whole = False
            return
        if not before:
            return
        f, q = (torch.cat(side).double() for side in (before, after))
        found = torch.stack(
            [(f * f).sum(), ((f - q) ** 2).sum(), (f * q).sum(), (q * q).sum()]
        )
        self.sums = found if self.sums is None else self.sums + found

    def to_dict(self) -> dict[str, float | None]:
        """``sqnr`` in dB and ``cosine``; None where rows do not agree."""
        if self.sums is None or not self.whole:
            return dict(sqnr=None, cosine=None)
        ff, ee, fq, qq = self.sums.tolist()
        cosine = fq / (ff * qq) ** 0.5 if ff > 0 and qq > 0 else None
        return dict(sqnr=decibels(ff, ee), cosine=_round(cosine))


def decibels(signal: float, noise: float) -> float | None:
    """``10 log10(signal / noise)``, at most 100; None without a signal."""
    if not signal > 0:
        return None
    if not noise > signal * 1e-10:
        return EXACT
    ratio = torch.tensor(signal / noise, dtype=torch.float64, device='cpu')
    return round(float(10 * ratio.log10()), 3)


@torch.no_grad()
def layer_table(session: Session, images: int = IMAGES) -> dict[str, Any]:
    """Compares layers with themselves in float, on calibration images.

    The detector runs float and quantized on the same images; where an
    adapter covers it, both on the proposals or queries of the float one, so
    that rows agree. Of each output some elements are kept, at the same
    places.

    Args:
        session (Session): After its last pass, its weights not yet baked.
        images (int): How many. Defaults to 4.

    Returns:
        dict[str, Any]: ``images`` (how many could be read), ``aligned``
        (whether an adapter held the rows), and ``layers`` in execution
        order: ``name``, ``part``, ``bits`` of both operands, ``weight`` and
        ``inputs`` (registered names of quantizers), ``sqnr`` in dB and
        ``cosine`` of the outputs, ``weight_sqnr``, and the histograms
        ``weights``, ``acts`` and, of the second operand of a product,
        ``others``. What is not known is None.
    """
    layers = session.layers
    errors = {name: _Errors() for name in layers}
    acts = {
        (name, port): GridHistogram()
        for name, m in layers.items()
        for port in m.act_quantizers
    }
    with warnings.catch_warnings():
        # on the loss that it is otherwise chosen for
        warnings.simplefilter('ignore')
        adapter = adapter_for(session.model, session.graph, False)
    count = 0
    device = session.device
    # a test that follows draws what it would have drawn
    with torch.random.fork_rng([device] if device.type == 'cuda' else []):
        for batch in _batches(session, images):
            _compare(session, adapter, batch, errors, acts)
            count += 1
    return dict(
        images=count,
        aligned=not isinstance(adapter, PredictionAdapter),
        layers=[
            _row(session, name, layers[name], errors[name], acts)
            for name in session.plan.layers
            if name in layers
        ],
    )


def _batches(session: Session, images: int) -> Iterator[dict]:
    """The first batches that can be read, as the model takes them."""
    found = 0
    for i in range(session.feed.total):
        batch = session.feed.batch(i)
        if batch is not None:
            yield session.model.data_preprocessor(batch, False)
            found += 1
        if found == images:
            return


def _compare(
    session: Session,
    adapter: Adapter,
    batch: dict,
    errors: dict[str, _Errors],
    acts: dict[Port, GridHistogram],
) -> None:
    model, layers = session.model, session.layers
    sides: list[dict[str, list[Tensor]]] = []

    def heard(name: str, _: int, y: Tensor) -> None:
        sides[-1].setdefault(name, []).append(sample(y))

    def arrives(name: str, port: str, level: int, x: Tensor) -> None:
        if (name, port) in acts:
            quantizer = layers[name].act_quantizers[port]
            acts[name, port].add(x, quantizer, level)

    images = count_images(batch['inputs'])
    anchor: dict[str, Tensor] = {}
    for as_float in (True, False):
        sides.append({})
        with ExitStack() as stack:
            if as_float:
                stack.enter_context(float_mode(model))
                with forward_context(images):
                    anchor = adapter.anchor(model, dict(batch))
            listen = arrives if as_float else None
            stack.enter_context(observing(layers, listen, heard))
            stack.enter_context(forward_context(images))
            adapter.outputs(model, dict(batch), anchor)
    for name, found in errors.items():
        found.add(*(side.get(name, []) for side in sides))


def sample(y: Tensor, most: int = ELEMENTS) -> Tensor:
    """Elements at places that depend on the shape alone, as a copy."""
    flat = y.detach().reshape(-1)
    # odd, so that it falls in step with no width of a map
    step = max(1, flat.numel() // most) | 1
    return flat[::step][:most].float().clone()


def _row(
    session: Session,
    name: str,
    layer: QuantLayer,
    errors: _Errors,
    acts: dict[Port, GridHistogram],
) -> dict[str, Any]:
    plan, node = session.plan.layers[name], session.graph.layers[name]
    seen = [acts.get((name, port)) for port in layer.ports[:2]]
    inputs = [one.to_dict() if one else None for one in seen]
    weights, loss = None, None
    if layer.weight_quantizer is not None:
        found = GridHistogram()
        found.add(layer.weight, layer.weight_quantizer)
        weights = found.to_dict()
        error = layer.quantized_weight() - layer.weight
        loss = decibels(
            float(layer.weight.double().square().sum()),
            float(error.double().square().sum()),
        )
    return dict(
        name=name,
        part=part_of(node),
        bits=list(operand_bits(plan, layer)),
        weight=plan.weight.type if plan.weight else None,
        inputs=[spec.type for spec in plan.acts.values() if spec],
        **errors.to_dict(),
        weight_sqnr=loss,
        weights=weights,
        acts=inputs[0],
        others=inputs[1] if inputs[1:] else None,
    )


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
