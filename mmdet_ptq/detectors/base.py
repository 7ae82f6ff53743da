# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Choice of an adapter, and the one for heads that nobody described."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ..registry import ADAPTERS
from ..structures import DetectionOutputs


class Adapter(ABC):
    """How to get raw outputs whose rows a float and a quantized run share.

    To add one, subclass, set :attr:`heads`, write :meth:`outputs`
    (and :meth:`anchor` where a detector chooses rows by itself: proposals,
    selected queries), and decorate the class with
    ``@ADAPTERS.register_module()``::

        @ADAPTERS.register_module()
        class MyAdapter(Adapter):
            heads = (MyHead,)

            def outputs(self, model, batch, anchor):
                feats = model.extract_feat(batch['inputs'])
                logits, boxes = model.bbox_head(feats)
                return [DetectionOutputs('bbox_head', logits[0], 'sigmoid')]

    Among adapters that fit a head, the one with the nearest base class of
    the head in its ``heads`` is taken, of equals the last registered. A
    module must be run by calling it, never by its ``forward``: callers
    replace the latter to replay what they cached. The model is in eval
    mode; heads compute something else in training.

    Args:
        mask (bool): Whether :meth:`outputs` also gives mask logits, where
            the detector has a mask head.

    Attributes:
        heads (tuple[type, ...]): Classes of heads, subclasses included.
        meaning (tuple[str, ...]): Names of the methods that say what raw
            outputs of a head mean. A subclass of a class in ``heads`` that
            overrides one of them is not covered: its outputs would be
            misread in silence.
        runs_masks (bool): Whether mask heads are run now; see
            :meth:`without_masks`.
    """

    heads: tuple[type, ...] = ()
    meaning: tuple[str, ...] = ()

    def __init__(self, mask: bool = False) -> None:
        self.mask = mask
        self.runs_masks = mask

    @classmethod
    def distance(cls, head: nn.Module) -> int | None:
        """How far a head is from the classes that the adapter covers.

        Args:
            head (nn.Module): The detector's ``roi_head``, ``bbox_head`` or
                ``rpn_head``.

        Returns:
            int | None: Position of the covered class in the method
            resolution order of the head's class; None: not covered.
        """
        kind = type(head)
        for place, base in enumerate(kind.__mro__):
            if base in cls.heads and all(
                getattr(kind, name) is getattr(base, name)
                for name in cls.meaning
            ):
                return place
        return None

    def of_masks(self, layer: str) -> bool:
        """Whether a layer may be run for masks.

        Args:
            layer (str): Its name in the detector.
        """
        return False

    @contextmanager
    def without_masks(self) -> Iterator[None]:
        """Mask heads are not run meanwhile, and their outputs have no rows."""
        before, self.runs_masks = self.runs_masks, False
        try:
            yield
        finally:
            self.runs_masks = before

    def anchor(self, model: nn.Module, batch: dict) -> dict[str, Tensor]:
        """Constants of the float model that align later runs.

        Args:
            model (nn.Module): The float detector.
            batch (dict): What ``model.data_preprocessor(data, False)``
                returns: ``inputs`` of shape (n, 3, H, W), ``data_samples``.

        Returns:
            dict[str, Tensor]: To be handed to :meth:`outputs`, without
            gradient; empty where rows are fixed by the architecture.
        """
        return {}

    @abstractmethod
    def outputs(
        self, model: nn.Module, batch: dict, anchor: dict[str, Tensor]
    ) -> list[DetectionOutputs]:
        """Raw outputs, differentiable where gradients are enabled.

        Args:
            model (nn.Module): The float or the quantized detector.
            batch (dict): As for :meth:`anchor`.
            anchor (dict[str, Tensor]): Of the float model on this batch.

        Returns:
            list[DetectionOutputs]: In fp32, head after head, and for each
            head image after image. Boxes are decoded without clamping to
            the image, which would stop gradients.
        """


class ReadsHead(Adapter):
    """An adapter that reads one dense head by itself.

    Adapters of two-stage detectors read the region proposal network so.
    """

    @abstractmethod
    def read(
        self, head: nn.Module, name: str, feats: Sequence[Tensor]
    ) -> list[DetectionOutputs]:
        """Calls a head and lays its maps out as rows.

        Args:
            head (nn.Module): A head that this class covers.
            name (str): Its name in the detector.
            feats (Sequence[Tensor]): Feature maps, (n, C, H, W) each.

        Returns:
            list[DetectionOutputs]: One for each of n images.
        """


def reader_of(head: nn.Module | None) -> type[ReadsHead] | None:
    """The adapter class that reads a head by itself, or None."""
    found = None if head is None else adapter_class(head)
    if found is not None and issubclass(found, ReadsHead):
        return found
    return None


def adapter_class(head: nn.Module) -> type[Adapter] | None:
    """The registered adapter class that covers a head best, or None."""
    ADAPTERS.import_from_location()
    best, found = None, None
    for cls in ADAPTERS.module_dict.values():
        place = cls.distance(head)
        if place is not None and (best is None or place <= best):
            best, found = place, cls
    return found


def has_adapter(model: nn.Module) -> bool:
    """Whether a registered adapter covers the head of a detector."""
    head = _head_of(model)
    return head is not None and adapter_class(head) is not None


def _head_of(model: nn.Module) -> nn.Module | None:
    head = getattr(model, 'roi_head', None)
    return head if head is not None else getattr(model, 'bbox_head', None)


def find_adapter(model: nn.Module, mask: bool = False) -> Adapter:
    """Chooses the adapter of a detector by the classes of its heads.

    Warns once where it has to fall back to :class:`RawAdapter`, or has to
    leave out a region proposal network that it cannot read.

    Args:
        model (nn.Module): An MMDetection detector.
        mask (bool): Whether mask logits are wanted too.

    Returns:
        Adapter: Ready to use; it holds no reference to the model.
    """
    head = _head_of(model)
    cls = adapter_class(head) if head is not None else None
    if cls is None:
        name = type(model if head is None else head).__name__
        warnings.warn(
            f'no detector adapter covers {name}: L2 on raw outputs is used '
            'instead of a detection loss (to add an adapter, see '
            'mmdet_ptq.detectors.Adapter)',
            stacklevel=2,
        )
        return RawAdapter(mask)
    rpn = getattr(model, 'rpn_head', None)
    if rpn is not None and reader_of(rpn) is None:
        warnings.warn(
            f'no detector adapter reads {type(rpn).__name__}: its outputs '
            'are left out of the detection loss',
            stacklevel=2,
        )
    return cls(mask)


class RawAdapter(Adapter):
    """Every raw tensor of ``mode='tensor'``, for heads nobody described.

    Nothing is known of these tensors, so that only an L2 loss can compare
    them. Proposals of a two-stage detector are held to the float ones.
    """

    def anchor(self, model: nn.Module, batch: dict) -> dict[str, Tensor]:
        """Float proposals, ``'{image}.{field}'``, of a two-stage detector."""
        if getattr(model, 'rpn_head', None) is None:
            return {}
        with torch.no_grad():
            found = model.rpn_head.predict(
                model.extract_feat(batch['inputs']),
                batch['data_samples'],
                rescale=False,
            )
        return {
            f'{i}.{name}': value
            for i, result in enumerate(found)
            for name, value in result.items()
            if isinstance(value, Tensor)
        }

    def outputs(
        self, model: nn.Module, batch: dict, anchor: dict[str, Tensor]
    ) -> list[Tensor]:
        """All floating point tensors of the raw forward, in its order.

        Args:
            model (nn.Module): The detector.
            batch (dict): Inputs and data samples.
            anchor (dict[str, Tensor]): Of :meth:`anchor`.

        Returns:
            list[Tensor]: In fp32, of any shapes.
        """
        with _proposals(model, anchor):
            return list(_tensors(model(**batch, mode='tensor')))


class PredictionAdapter(Adapter):
    """Runs predictions, for detectors that have nothing raw to compare.

    It gives no outputs: it serves losses on the outputs of units.
    """

    def outputs(
        self, model: nn.Module, batch: dict, anchor: dict[str, Tensor]
    ) -> list[Tensor]:
        """Predicts, and returns an empty list."""
        model(**batch, mode='predict')
        return []


@contextmanager
def _proposals(model: nn.Module, anchor: dict[str, Tensor]) -> Iterator[None]:
    """Makes ``model.rpn_head.predict`` return anchored proposals."""
    if not anchor:
        yield
        return
    results: dict[int, InstanceData] = {}
    for key, value in anchor.items():
        image, _, field = key.partition('.')
        results.setdefault(int(image), InstanceData())[field] = value
    model.rpn_head.predict = lambda *args, **kwargs: [
        results[i].clone() for i in sorted(results)
    ]
    try:
        yield
    finally:
        del model.rpn_head.predict


def _tensors(out: Any) -> Iterator[Tensor]:
    """Floating point tensors of a nested structure, depth first."""
    if isinstance(out, Tensor):
        if out.is_floating_point():
            yield out.float()
    elif isinstance(out, dict):
        for value in out.values():
            yield from _tensors(value)
    elif isinstance(out, list | tuple):
        for value in out:
            yield from _tensors(value)
