# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Detection transformers: one row a query."""

from typing import Any

import torch
from mmdet.models.dense_heads import DeformableDETRHead, DETRHead
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..registry import ADAPTERS
from ..structures import DetectionOutputs
from .base import Adapter


class SelectedQueries(TorchFunctionMode):
    """Reads, or decides, which encoder rows become queries.

    Two-stage detectors of the Deformable DETR family pick their queries by
    one ``torch.topk`` inside ``pre_decoder``, the only top-k between their
    features and their head. Replacing its indices needs no copy of their
    code, leaves every module call where it is, and lets the chosen rows
    come from the running network, so that gradients reach the encoder.

    Args:
        forced (Tensor, optional): int64 (n, queries), indices that top-k
            returns. Defaults to None: what it found.

    Attributes:
        seen (list[Tensor]): Indices that were used, one a call.
    """

    def __init__(self, forced: Tensor | None = None) -> None:
        super().__init__()
        self.forced = forced
        self.seen: list[Tensor] = []

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple = (),
        kwargs: dict | None = None,
    ) -> Any:
        """Runs an op; the result of a top-k may be exchanged."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func not in (torch.topk, Tensor.topk):
            return out
        index = out[1] if self.forced is None else self.forced
        self.seen.append(index)
        scores = args[0] if args else kwargs['input']
        dim = args[2] if len(args) > 2 else kwargs.get('dim', -1)
        return type(out)([scores.gather(dim, index), index])


@ADAPTERS.register_module()
class QueryAdapter(Adapter):
    """DETR, Conditional, DAB and Deformable DETR, DINO.

    Query i is the same one in every run, since queries are weights; where
    a two-stage detector picks them, it is held to the picks of the float
    one. Outputs are those of the last decoder layer, whose boxes are
    (cx, cy, w, h) after the sigmoid, as shares of the image.
    """

    heads = (DETRHead, DeformableDETRHead)
    meaning = ('predict_by_feat', '_predict_by_feat_single')

    def anchor(self, model: nn.Module, batch: dict) -> dict[str, Tensor]:
        """Picks of the float model.

        Args:
            model (nn.Module): The float detector.
            batch (dict): Inputs and data samples.

        Returns:
            dict[str, Tensor]: ``'queries'``, int64 (n, queries), indices of
            encoder rows; empty where queries are weights.
        """
        if not getattr(model, 'as_two_stage', False):
            return {}
        with torch.no_grad():
            feats = model.extract_feat(batch['inputs'])
            with SelectedQueries() as picks:
                model.forward_transformer(feats, batch['data_samples'])
        if len(picks.seen) != 1:
            raise RuntimeError(
                f'{type(model).__name__} made {len(picks.seen)} top-k '
                'selections of queries, expected one'
            )
        return {'queries': picks.seen[0]}

    def outputs(
        self, model: nn.Module, batch: dict, anchor: dict[str, Tensor]
    ) -> list[DetectionOutputs]:
        """Rows of the last decoder layer; see :meth:`Adapter.outputs`."""
        samples = batch['data_samples']
        feats = model.extract_feat(batch['inputs'])
        with SelectedQueries(anchor.get('queries')):
            inputs = model.forward_transformer(feats, samples)
        logits, boxes = (out[-1].float() for out in model.bbox_head(**inputs))
        sigmoid = model.bbox_head.loss_cls.use_sigmoid
        return [
            DetectionOutputs(
                'bbox_head',
                logits[i],
                'sigmoid' if sigmoid else 'softmax',
                None if sigmoid else logits.shape[-1] - 1,
                boxes[i],
                _decoder(sample.img_shape),
            )
            for i, sample in enumerate(samples)
        ]


def _decoder(shape: tuple[int, ...]) -> Any:
    """What decodes shares of an image of ``shape`` (height, width)."""
    height, width = shape[:2]

    def decode(picked: Tensor, rows: Tensor) -> Tensor:
        """Corners (M, 4) in pixels of raw boxes (M, 4)."""
        size = picked.new_tensor([width, height, width, height])
        return bbox_cxcywh_to_xyxy(picked) * size

    return decode
