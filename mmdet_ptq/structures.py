# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Plain data that the rooms of the package hand to one another."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Port = tuple[str, str]
"""(layer name, port name); a port is one quantizable input of a layer:
``'input'`` for conv and linear, ``'a'`` and ``'b'`` for a matmul."""


@dataclass(frozen=True)
class QuantSpec:
    """How one tensor is quantized.

    Attributes:
        type (str): Registered name of the quantizer.
        bits (int): Bit-width, 2 to 8.
        args (dict): Further arguments of the quantizer, plain JSON types.
    """

    type: str
    bits: int
    args: dict[str, Any] = field(default_factory=dict)


@dataclass
class LayerPlan:
    """What becomes of one layer.

    Attributes:
        name (str): Module name of the layer.
        weight (QuantSpec, optional): None keeps the weight float.
        acts (dict[str, QuantSpec | None]): A spec for each port.
        why_float (str): Why nothing of the layer is quantized, else ''.
    """

    name: str
    weight: QuantSpec | None
    acts: dict[str, QuantSpec | None]
    why_float: str = ''


@dataclass
class QuantPlan:
    """Rules applied to a graph.

    Attributes:
        layers (dict[str, LayerPlan]): In execution order.
        groups (list[list[Port]]): Ports that share one activation
            quantizer; every quantized port is in exactly one group.
        uncovered (dict[str, str]): Modules with weights that stay float
            because no twin covers them: name to reason.
        notes (list[str]): Sentences on what rules could not decide alone;
            not saved.
    """

    layers: dict[str, LayerPlan]
    groups: list[list[Port]]
    uncovered: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Op:
    """One recorded operation of the surveyed forward.

    Attributes:
        index (int): Position in execution order.
        name (str): Name of the torch function (``'add'``, ``'softmax'``,
            ``'roi_align'`` ...) or, for a leaf module, its class name.
        module (str): Module name if the op is the call of a leaf module,
            else ''.
        scope (str): Name of the innermost module executing.
        inputs (tuple[int, ...]): Ids of the tensor values it reads, in
            argument order.
        outputs (tuple[int, ...]): Ids of the values it makes.
    """

    index: int
    name: str
    module: str
    scope: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Value:
    """One tensor of the surveyed forward.

    Attributes:
        id (int): Its number.
        producer (int): Index of the op that made it; -1 for an input of
            the model, a parameter or a constant.
        shape (tuple[int, ...]): Its shape.
        is_input (bool): Whether it is the image batch.
        floating (bool): False for indices and masks.
    """

    id: int
    producer: int
    shape: tuple[int, ...]
    is_input: bool = False
    floating: bool = True


@dataclass
class LayerNode:
    """A quantizable leaf layer as the forward used it.

    Attributes:
        name (str): Module name.
        cls (type): Class of the (float) module.
        calls (list[Op]): Its calls, in order; one for each pyramid level
            where a head is shared.
        ports (tuple[str, ...]): Names of its quantizable inputs.
        roles (frozenset[str]): Subset of ``stem prediction backbone neck
            rpn head mask attention offset position norm``.
        port_roles (dict[str, frozenset[str]]): For each port, a subset of
            ``softmax gelu query key``: what arrives there.
        groups (int): Groups of a convolution; 1 otherwise.
        params (int): Number of parameters.
        shares (str): What else has its weight or bias, a sentence; '' if
            nothing has.
        tied (tuple[str, ...]): Other layers that have the very same weight
            and can be quantized like it.
        held (bool): Whether its weight must stay as it is, because of what
            else reads it.
    """

    name: str
    cls: type
    calls: list[Op]
    ports: tuple[str, ...]
    roles: frozenset[str] = frozenset()
    port_roles: dict[str, frozenset[str]] = field(default_factory=dict)
    groups: int = 1
    params: int = 0
    shares: str = ''
    tied: tuple[str, ...] = ()
    held: bool = False


@dataclass(frozen=True)
class NormLink:
    """A norm layer and the layers that read its output.

    Attributes:
        norm (str): Module name of the norm.
        layers (tuple[str, ...]): Quantizable layers fed by it.
        via (tuple[str, ...]): Names of the ops between (``'pad'``,
            ``'reshape'``, ``'roll'`` ...).
        exclusive (bool): True if nothing but these layers reads the
            norm's output, so that an affine change can be folded.
        sums (tuple[str, ...]): Quantizable layers that read it added to
            something else, a positional encoding as a rule.
        pads (tuple[str, ...]): Modules in which it is padded on the way,
            or parted in windows, for which some images are padded.
    """

    norm: str
    layers: tuple[str, ...]
    via: tuple[str, ...]
    exclusive: bool
    sums: tuple[str, ...] = ()
    pads: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scaling:
    """Channels that K factors s > 0 scale without changing any output.

    Indices say of each channel whether it is scaled: 0 is not, k by the
    k-th factor, counted from 1, -k by its inverse.

    Attributes:
        kind (str): ``'layer'``: between layers; ``'norm'``: a norm makes
            some; ``'pv'``: through the values of an attention; ``'qk'``:
            queries and keys.
        count (int): K.
        outputs (dict[str, Tensor]): Layers and norms to the indices of
            their output channels, which are divided.
        inputs (dict[str, Tensor]): Layers to the indices of their input
            channels, whose weights are multiplied.
        ports (dict[Port, Tensor]): Inputs of products to the indices of
            what arrives, broadcastable, which is divided.
    """

    kind: str
    count: int
    outputs: dict[str, Tensor]
    inputs: dict[str, Tensor]
    ports: dict[Port, Tensor]


Scalings = tuple[list[Scaling], dict[str, str]]
"""What can be scaled, and reasons of what cannot."""


@dataclass(frozen=True)
class Unit:
    """Layers that a reconstruction treats at once.

    Attributes:
        name (str): Module name of the block, or of the single layer.
        layers (tuple[str, ...]): Its quantizable layers, in order.
    """

    name: str
    layers: tuple[str, ...]


@dataclass
class LayerGraph:
    """The surveyed forward of a detector.

    Attributes:
        ops (list[Op]): Every recorded op in execution order.
        values (dict[int, Value]): Every tensor by id.
        layers (dict[str, LayerNode]): Quantizable layers that were called,
            in order of their first call.
        bn_folds (dict[str, str]): Batch norm name to the layer it can be
            folded into.
        norm_links (list[NormLink]): LayerNorm and the like to layers.
        shared_ports (list[list[Port]]): Groups of ports that read the same
            tensors (every port of ``layers`` is in exactly one group).
        units (list[Unit]): A partition of ``layers``.
        uncalled (list[str]): Quantizable modules the forward did not call.
        outputs (tuple[int, ...]): Ids of the raw output tensors.
        mode (str): ``'tensor'`` if the forward was raw, ``'predict'`` if it
            was a prediction.
        modes (tuple[str, ...]): Modes in which the detector runs its layers.
        raw (bool): Whether the raw forward works and returns tensors.
        predicted (frozenset[str]): Layers that a prediction called.
        levels (dict[str, int]): Calls of each layer in one forward of the
            detector, or of one of ``heads``.
        heads (tuple[str, ...]): Children of the detector that call layers
            for each pyramid level in each of their own calls.
        products (dict[str, str]): Modules that multiply outside of layers,
            ``''`` for the detector itself: a sentence for each.
        borrowed (dict[str, str]): Layers of ``uncalled`` whose weight is
            used all the same: a sentence for each.
        kept_norms (dict[str, str]): Batch norms that follow one layer and
            cannot be folded into it: name to reason.
        find_scalings (Callable): Gives channels that can be scaled once
            ``bn_folds`` are folded, and of layers and norms with output
            channels that cannot, name to reason. It takes a while.
    """

    ops: list[Op]
    values: dict[int, Value]
    layers: dict[str, LayerNode]
    bn_folds: dict[str, str]
    norm_links: list[NormLink]
    shared_ports: list[list[Port]]
    units: list[Unit]
    uncalled: list[str]
    outputs: tuple[int, ...]
    mode: str = 'tensor'
    modes: tuple[str, ...] = ('tensor',)
    raw: bool = True
    predicted: frozenset[str] = frozenset()
    levels: dict[str, int] = field(default_factory=dict)
    heads: tuple[str, ...] = ()
    products: dict[str, str] = field(default_factory=dict)
    borrowed: dict[str, str] = field(default_factory=dict)
    kept_norms: dict[str, str] = field(default_factory=dict)
    find_scalings: Callable[[], Scalings] = lambda: ([], {})


@dataclass
class DetectionOutputs:
    """Raw outputs of one head on one image, aligned by index.

    Row i is the same anchor, cell, proposal or query in the float and in
    the quantized detector. Nothing is detached: gradients flow.

    Attributes:
        name (str): Of the head, e.g. ``'bbox_head'``, ``'rpn_head'``,
            ``'roi_head.bbox_head.1'``.
        logits (Tensor): Shape (N, C), before sigmoid or softmax; softmax
            heads have their background column among the C.
        activation (str): ``'sigmoid'`` or ``'softmax'``.
        background (int, optional): Column of the background; None for
            sigmoid heads.
        boxes (Tensor, optional): Raw regression outputs as the head was
            trained to give them, shape (N, 4), or (N, K, 4) where each of
            K classes has a box of its own; None without a box branch.
        decode (Callable, optional): ``decode(boxes[rows], rows)`` gives
            differentiable corner boxes (x1, y1, x2, y2), shape (M, 4), from
            raw outputs of shape (M, 4) and the indices (M, ) of their rows.
        levels (Tensor, optional): int64 (N, ), pyramid level of each row;
            None if there is one level.
    """

    name: str
    logits: Tensor
    activation: str
    background: int | None = None
    boxes: Tensor | None = None
    decode: Callable[[Tensor, Tensor], Tensor] | None = None
    levels: Tensor | None = None
