# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What passes report of what they did, in a form that goes into files."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Record:
    """Base of all records.

    A subclass is a frozen dataclass whose fields are plain JSON types.

    Attributes:
        unit (str): Name of the unit, or ``'all'``.
    """

    unit: str

    def to_dict(self) -> dict[str, Any]:
        """Its class and fields; :func:`record_of` reads it back."""
        return dict(type=type(self).__name__, **asdict(self))


@dataclass(frozen=True)
class AllocationRecord(Record):
    """Bits that a weight, an input or some of its channels got.

    Attributes:
        tensor (str): ``'weight'`` or a port, of the first of its layers.
        layers (list[str]): All layers that have it.
        group (int, optional): Which group of channels, counted from 0; None
            where it is the whole tensor.
        elements (int): How many numbers have these bits; of an input, in
            one image.
        bits (int): What it got.
        widths (list[int]): What it could have got, rising.
        curve (list[float | None]): The least that each of these or a
            narrower one was seen to add to the distance from the float
            detector, so that no value rises with the width; None where that
            is not finite.
    """

    tensor: str
    layers: list[str]
    group: int | None
    elements: int
    bits: int
    widths: list[int]
    curve: list[float | None]


@dataclass(frozen=True)
class BudgetRecord(Record):
    """A budget of bits and what was made of it.

    ``unit`` says of what it is: ``'weights'``, ``'inputs'``, ``'weights and
    inputs'`` or ``'layers'``. Distances are those of the whole detector from
    the float one, with all that was allocated quantized and the rest float;
    they are the same in all budgets of a pass.

    Attributes:
        cost (str): What is counted, e.g. ``'mean bits'``.
        budget (float): How much there was.
        spent (float): How much was taken.
        least (int): Fewest bits that something got.
        most (int): Most bits.
        solver (str): What chose; ``'one width'`` where that was nearest.
        objective (str): Whose distance was made small.
        predicted (float): Distance as the curves add up.
        measured (float): Distance as it was then measured.
        uniform (float, optional): Measured with one width everywhere, None
            where that does not fit the budget, or gives NaN or Inf.
    """

    cost: str
    budget: float
    spent: float
    least: int
    most: int
    solver: str
    objective: str
    predicted: float
    measured: float
    uniform: float | None = None


@dataclass(frozen=True)
class EqualizationRecord(Record):
    """Channels that could be scaled where they are made and read.

    Attributes:
        kind (str): ``'layer'``, ``'norm'``, ``'qk'`` or ``'pv'``.
        by (str): What the factors come from: ``'weights'``,
            ``'activations'``, or ``''`` if all are 1.
        alpha (float): Exponent of the factors.
        ratio (float): Largest factor over the smallest.
        before (float, optional): Error of the quantized outputs of who
            reads the channels, over the mean squares of these outputs, as
            they were; None where it was not looked at.
        after (float, optional): The same with the factors.
    """

    kind: str
    by: str
    alpha: float
    ratio: float
    before: float | None = None
    after: float | None = None


@dataclass(frozen=True)
class MixingRecord(Record):
    """Channels of attention heads that were mixed.

    Attributes:
        kind (str): ``'qk'`` or ``'pv'``.
        gain (float): Predicted error of the product as it was, over that of
            mixed channels.
    """

    kind: str
    gain: float


@dataclass(frozen=True)
class NoiseRecord(Record):
    """Whether the channels of an input got fixed noise.

    Attributes:
        layers (list[str]): That read the tensor.
        amplitude (float): Largest noise in steps of the quantizer, 0 if
            there is none.
        error (float): Squared error of their outputs on images held out,
            over that without noise.
    """

    layers: list[str]
    amplitude: float
    error: float


@dataclass(frozen=True)
class RangeRecord(Record):
    """Ranges that were chosen by the detector's outputs.

    Attributes:
        exponent (float): Of the Lp search that gave the ranges.
        loss (float): Of the detector with these ranges.
        after (float, optional): Of the detector after a joint search.
        evaluations (int): How often that loss was computed.
    """

    exponent: float
    loss: float
    after: float | None = None
    evaluations: int = 0


@dataclass(frozen=True)
class ReparametrizationRecord(Record):
    """Input channels behind a norm that were brought to one grid.

    Attributes:
        norm (str): Name of the norm.
        layers (list[str]): That make up for it.
        ratio (float): Largest scale of a channel over the smallest.
        free (bool): Whether the norm gives the channels so, at no cost.
    """

    norm: str
    layers: list[str]
    ratio: float
    free: bool


@dataclass(frozen=True)
class RoundingRecord(Record):
    """Compensated rounding of one layer.

    Errors are mean squares over that of the layer's float output, of
    sampled rows of the calibration images.

    Attributes:
        before (float): Error of the layer's output with the nearest values.
        after (float): Error with those that were found.
        damping (float): Share of the mean second moment that was added.
        share (float): How much of the correction towards the float output
            other images confirmed, from 0 to 1.
        rows (int): How many rows were seen.
        dead (int): Columns of the weight whose input never changed.
    """

    before: float
    after: float
    damping: float
    share: float
    rows: int
    dead: int


@dataclass(frozen=True)
class ScaledInputsRecord(Record):
    """Whether the channels of an input got grids of their own.

    Attributes:
        layers (list[str]): That read the tensor.
        error (float): Squared error of their outputs on images held out,
            over that with one grid.
        strength (float): How far the widths of channels were made equal, 0
            if the tensor kept one grid.
        shifted (bool): Whether channels were shifted too.
        free (bool): Whether what makes the tensor was scaled, so that it
            costs nothing.
    """

    layers: list[str]
    error: float
    strength: float
    shifted: bool
    free: bool


@dataclass(frozen=True)
class SearchRecord(Record):
    """The search for the scales of one quantizer.

    Losses are those of the objective on sampled rows of the calibration
    images: sums, of squared errors or of what the objective is.

    Attributes:
        tensor (str): ``'weight'`` or a port, of the first of its layers.
        layers (list[str]): All layers that share the quantizer.
        before (float): Loss before.
        after (float): Loss after; what was there stays if none is less. By
            blocks, both are of the first round.
    """

    tensor: str
    layers: list[str]
    before: float
    after: float


@dataclass(frozen=True)
class GroupsRecord(Record):
    """How many grids of each image an input got.

    Attributes:
        port (str): Of the first of its layers.
        layers (list[str]): All layers that share the grids.
        candidates (list[int]): Numbers of grids that were tried.
        perturbations (list[float | None]): What each of them does to the
            detector's outputs, a mean over images; None if not finite.
        bops (list[int]): Bit operations above those of the smallest number
            of grids that was looked at.
        groups (int): The number that was chosen.
    """

    port: str
    layers: list[str]
    candidates: list[int]
    perturbations: list[float | None]
    bops: list[int]
    groups: int


@dataclass(frozen=True)
class UnitRecord(Record):
    """The reconstruction of one unit.

    Attributes:
        before (float): Held-out loss before.
        after (float, optional): Held-out loss after, None if not finite.
        kept (bool): Whether the unit stayed as it was learned.
        why (str): Why it was put back, else ''.
        curve (list[float]): Training loss at some steps.
        learned (list[str]): Registered names of the learners.
        seconds (float): Time it took.
        correction (list[float], optional): Mean loss of PD-Quant's
            correction before and after, None where nothing was corrected.
    """

    before: float
    after: float | None
    kept: bool
    why: str = ''
    curve: list[float] = field(default_factory=list)
    learned: list[str] = field(default_factory=list)
    seconds: float = 0.0
    correction: list[float] | None = None


def reported(records: Iterable[Record]) -> dict[str, list[dict]]:
    """Records as the result file has them.

    Args:
        records (Iterable[Record]): In the order in which they were made.

    Returns:
        dict[str, list[dict]]: Fields of those of each kind.
    """
    kinds = dict(
        reconstruction=UnitRecord,
        ranges=RangeRecord,
        rounding=RoundingRecord,
        equalization=EqualizationRecord,
        mixing=MixingRecord,
        scaling=ScaledInputsRecord,
        reparametrization=ReparametrizationRecord,
        noise=NoiseRecord,
        search=SearchRecord,
        allocation=AllocationRecord,
        budget=BudgetRecord,
        groups=GroupsRecord,
    )
    found = list(records)
    return {
        key: [asdict(one) for one in found if isinstance(one, kind)]
        for key, kind in kinds.items()
    }


def record_of(found: dict[str, Any]) -> Record:
    """Reads :meth:`Record.to_dict` back.

    Args:
        found (dict): With the name of the class under ``type``.

    Returns:
        Record: Of the subclass that was written.

    Raises:
        KeyError: If no subclass has that name.
    """
    fields = dict(found)
    return _kinds(Record)[fields.pop('type')](**fields)


def _kinds(base: type[Record]) -> dict[str, type[Record]]:
    found = {}
    for kind in base.__subclasses__():
        found |= {kind.__name__: kind, **_kinds(kind)}
    return found
