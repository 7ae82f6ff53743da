# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Heads that predict at every cell of a feature pyramid."""

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from mmdet.models.dense_heads import GFLHead, RPNHead, YOLOXHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.task_modules.coders import DistancePointBBoxCoder
from mmdet.structures.bbox import get_box_tensor
from torch import Tensor, nn

from ..registry import ADAPTERS
from ..structures import DetectionOutputs
from .base import ReadsHead

Decode = Callable[[Tensor, Tensor], Tensor]
#: sizes of images whose priors are kept: 8 MB each for 800 x 1333 pixels
SIZES = 16


def flatten(maps: Sequence[Tensor], width: int) -> Tensor:
    """Lays maps of all levels out as rows.

    Args:
        maps (Sequence[Tensor]): One of shape (n, A * width, H, W) a level,
            with A priors a cell.
        width (int): Values a prior.

    Returns:
        Tensor: Shape (n, N, width), float32, in the order of
        ``predict_by_feat``: level, cell row by row, prior.
    """
    rows = [m.permute(0, 2, 3, 1).reshape(len(m), -1, width) for m in maps]
    return torch.cat(rows, dim=1).float()


def _levels(
    head: nn.Module, per_level: list[int], like: Tensor
) -> tuple[Tensor, Tensor]:
    """Level of each row, (N, ), and its stride (w, h, w, h), (N, 4).

    The latter for the distances (left, top, right, bottom).
    """
    levels, strides = [], []
    for i, (n, stride) in enumerate(
        zip(per_level, head.prior_generator.strides, strict=False)
    ):
        levels.append(like.new_full((n,), i, dtype=torch.int64))
        sides = [like.new_full((n, 1), side) for side in stride]
        strides.append(torch.cat(sides, 1).repeat(1, 2))
    return torch.cat(levels), torch.cat(strides)


def joint_logits(a: Tensor, b: Tensor) -> Tensor:
    """Logit of the product of two probabilities given by their logits.

    sigmoid(a) sigmoid(b) / (1 - sigmoid(a) sigmoid(b)) has the logarithm
    a + b - log(1 + exp(a) + exp(b)).

    Args:
        a (Tensor): Any shape.
        b (Tensor): A shape that broadcasts with ``a``.

    Returns:
        Tensor: Of the broadcast shape; finite where both are.
    """
    total = torch.logaddexp(a, b)
    return a + b - torch.logaddexp(total, torch.zeros_like(total))


@ADAPTERS.register_module()
class DenseAdapter(ReadsHead):
    """Dense heads that leave post-processing to MMDetection's base class.

    RetinaNet, YOLOF, SSD, FCOS, ATSS, RTMDet, RPN and many more. The base
    class reads class scores, boxes and a quality (centerness, IoU), which
    it multiplies to the score; what it does with them gives the raw outputs
    their meaning, whatever layers a head has.

    Logits: what ``forward`` returns (YOLOF: with its implicit objectness).
    With a quality branch, those of class times quality, the score that
    ranks the detections: the confidence is then the detector's, and the
    gradient reaches both branches.

    Boxes: what the coder decodes; distances in strides of the level, as
    they were trained (FCOS and RTMDet return pixels), so that an error
    means the same on every level.
    """

    heads = (BaseDenseHead, RPNHead)
    meaning = ('predict', 'predict_by_feat', '_predict_by_feat_single')

    def __init__(self, mask: bool = False) -> None:
        super().__init__(mask)
        # heads are not kept alive
        self._constants: WeakKeyDictionary[nn.Module, dict] = (
            WeakKeyDictionary()
        )

    @classmethod
    def distance(cls, head: nn.Module) -> int | None:
        """As the base class; losses with scores of their own: None."""
        loss = getattr(head, 'loss_cls', None)
        if getattr(loss, 'custom_cls_channels', False):
            return None
        return super().distance(head)

    def outputs(
        self, model: nn.Module, batch: dict, anchor: dict[str, Tensor]
    ) -> list[DetectionOutputs]:
        """Rows of the ``bbox_head``; see :meth:`Adapter.outputs`."""
        feats = model.extract_feat(batch['inputs'])
        return self.read(model.bbox_head, 'bbox_head', feats)

    def read(
        self, head: nn.Module, name: str, feats: Sequence[Tensor]
    ) -> list[DetectionOutputs]:
        """See :meth:`ReadsHead.read`."""
        scores, deltas, *quality = head(feats)
        logits = flatten(scores, head.cls_out_channels)
        if quality:
            logits = joint_logits(logits, flatten(quality[0], 1))
        sizes = [tuple(m.shape[-2:]) for m in scores]
        per_level = [m[0].numel() // head.cls_out_channels for m in scores]
        levels, strides = self._kept(
            (head, 'levels', *sizes, logits.device),
            lambda: _levels(head, per_level, logits),
        )
        boxes, decode = self._boxes(head, deltas, sizes, strides)
        sigmoid = head.use_sigmoid_cls
        return [
            DetectionOutputs(
                name,
                logits[i],
                'sigmoid' if sigmoid else 'softmax',
                None if sigmoid else logits.shape[-1] - 1,
                boxes[i],
                decode,
                levels,
            )
            for i in range(len(logits))
        ]

    def _priors(
        self, head: nn.Module, sizes: list, like: Tensor, **kwargs: bool
    ) -> Tensor:
        """Priors of all levels, shape (N, 4) or (N, 2), in pixels."""

        def make() -> Tensor:
            priors = head.prior_generator.grid_priors(
                sizes, dtype=torch.float32, device=like.device, **kwargs
            )
            return torch.cat([get_box_tensor(p) for p in priors])

        return self._kept((head, 'priors', *sizes, like.device), make)

    def _kept(self, key: tuple, make: Callable[[], Any]) -> Any:
        """What depends on the sizes of the maps alone, made once for some.

        MMDetection makes it on the CPU, and a GPU would wait for it.
        """
        head, *rest = key
        known = self._constants.setdefault(head, {})
        name = tuple(rest)
        if name not in known:
            if len(known) >= 2 * SIZES:
                del known[next(iter(known))]
            known[name] = make()
        return known[name]

    def _boxes(
        self,
        head: nn.Module,
        maps: Sequence[Tensor],
        sizes: list[tuple[int, int]],
        strides: Tensor,
    ) -> tuple[Tensor, Decode]:
        """Raw boxes of shape (n, N, 4) and what decodes them.

        Args:
            head (nn.Module): The head.
            maps (Sequence[Tensor]): Its box maps, one a level.
            sizes (list[tuple[int, int]]): Their heights and widths.
            strides (Tensor): Shape (N, 4), pixels a stride of each row.

        Returns:
            tuple[Tensor, Callable]: See :class:`DetectionOutputs`.
        """
        priors, coder = self._priors(head, sizes, maps[0]), head.bbox_coder
        boxes = flatten(maps, 4)
        distances = isinstance(coder, DistancePointBBoxCoder)

        def decode(picked: Tensor, rows: Tensor) -> Tensor:
            """Corners (M, 4) in pixels of raw boxes (M, 4) of rows (M, )."""
            if distances:
                picked = picked * strides[rows]
            return get_box_tensor(coder.decode(priors[rows], picked))

        return (boxes / strides if distances else boxes), decode


@ADAPTERS.register_module()
class GFLAdapter(DenseAdapter):
    """Generalized focal loss: a distribution for each distance.

    Boxes are the expected distances, in strides; their gradient reaches
    every bin.
    """

    heads = (GFLHead,)

    def _boxes(
        self,
        head: nn.Module,
        maps: Sequence[Tensor],
        sizes: list[tuple[int, int]],
        strides: Tensor,
    ) -> tuple[Tensor, Decode]:
        anchors = self._priors(head, sizes, maps[0])
        bins = flatten(maps, 4 * (head.reg_max + 1))
        boxes = head.integral(bins).reshape(len(bins), -1, 4)
        centers = head.anchor_center(anchors)

        def decode(picked: Tensor, rows: Tensor) -> Tensor:
            """Corners (M, 4) in pixels of distances (M, 4) of rows (M, )."""
            pixels = picked * strides[rows]
            return get_box_tensor(
                head.bbox_coder.decode(centers[rows], pixels)
            )

        return boxes, decode


@ADAPTERS.register_module()
class YOLOXAdapter(DenseAdapter):
    """YOLOX: logits of class times objectness, boxes (dx, dy, log w, log h).

    Objectness is kept inside the logits and not as a head of its own: a
    detection is ranked by the product, and the class branch alone is
    meaningless at the many cells without an object, where it was never
    trained.
    """

    heads = (YOLOXHead,)

    def _boxes(
        self,
        head: nn.Module,
        maps: Sequence[Tensor],
        sizes: list[tuple[int, int]],
        strides: Tensor,
    ) -> tuple[Tensor, Decode]:
        priors = self._priors(head, sizes, maps[0], with_stride=True)

        def decode(picked: Tensor, rows: Tensor) -> Tensor:
            """Corners (M, 4) in pixels of raw boxes (M, 4) of rows (M, )."""
            return head._bbox_decode(priors[rows], picked)

        return flatten(maps, 4), decode
