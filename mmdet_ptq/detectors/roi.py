# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Two-stage detectors: the region proposal network and heads on its boxes."""

from collections.abc import Sequence

import torch
from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.structures.bbox import bbox2roi, get_box_tensor
from torch import Tensor, nn

from ..registry import ADAPTERS
from ..structures import DetectionOutputs
from .base import Adapter, ReadsHead, reader_of

#: proposals kept of an image
MAX_ROIS = 512
#: boxes of an image whose masks are compared, as many as COCO evaluates
MAX_MASKS = 100


@ADAPTERS.register_module()
class RoIAdapter(Adapter):
    """Faster, Mask and Cascade R-CNN.

    Both networks pool their own feature maps at the boxes of the float one:
    its proposals, and for later stages of a cascade what its earlier stages
    made of them. Boxes of a quantized run would be other boxes in another
    order, and not differentiable.

    Class logits have the background in their last column. Boxes have a row
    for each class unless the head is class-agnostic.

    With ``mask=True`` an output named ``'...mask_head'`` follows, for the
    100 boxes that the float model is surest of: a row a box, a column a
    pixel of the logits of the class that the float model chose.
    """

    heads = (StandardRoIHead, CascadeRoIHead)
    meaning = ('_bbox_forward',)

    def __init__(self, mask: bool = False) -> None:
        super().__init__(mask)
        # the same in all calls, as it keeps what it has computed
        self._reader: ReadsHead | None = None

    @classmethod
    def distance(cls, head: nn.Module) -> int | None:
        """As the base class, if the box heads are usual ones too."""
        names = ('predict_by_feat', '_predict_by_feat_single')
        for _, box_head in _stages(head, 'bbox_head'):
            if (
                not isinstance(box_head, BBoxHead)
                or box_head.custom_activation
                or any(
                    getattr(type(box_head), name)
                    is not getattr(BBoxHead, name)
                    for name in names
                )
            ):
                return None
        return super().distance(head)

    def of_masks(self, layer: str) -> bool:
        """See :meth:`Adapter.of_masks`.

        All of a RoI head but its box heads: a shared head is run for both,
        and so is the extractor of boxes where masks have none of their own.
        """
        return layer.startswith('roi_head.') and not layer.startswith(
            'roi_head.bbox_head.'
        )

    def anchor(self, model: nn.Module, batch: dict) -> dict[str, Tensor]:
        """Boxes of the float model.

        Args:
            model (nn.Module): The float detector.
            batch (dict): Inputs and data samples.

        Returns:
            dict[str, Tensor]: ``'rois.{stage}'`` of shape (P, 5): image,
            x1, y1, x2, y2 in pixels. With masks also ``'mask_rois'`` (M, 5)
            and ``'mask_labels'`` (M, ), int64.
        """
        samples, head = batch['data_samples'], model.roi_head
        found = {}
        with torch.no_grad():
            feats = model.extract_feat(batch['inputs'])
            rois = bbox2roi(_proposals(model, feats, samples))
            stages = _stages(head, 'bbox_head')
            for stage, (_, box_head) in enumerate(stages):
                found[f'rois.{stage}'] = rois
                result = _box_forward(head, stage, feats, rois)
                scores = result['cls_score'].float().softmax(-1)[:, :-1]
                confidence, labels = scores.max(dim=1)
                if stage < len(stages) - 1:
                    deltas = result['bbox_pred']
                    rois = _refine(box_head, rois, labels, deltas, samples)
            if self._masks(head):
                rows = _surest(confidence, rois[:, 0])
                found['mask_rois'] = rois[rows]
                found['mask_labels'] = labels[rows]
        return found

    def outputs(
        self, model: nn.Module, batch: dict, anchor: dict[str, Tensor]
    ) -> list[DetectionOutputs]:
        """Rows of RPN, box heads, mask heads; see :meth:`Adapter.outputs`.

        A row of a box head is a box of ``anchor['rois.{stage}']``, a row of
        a mask head one of ``anchor['mask_rois']``.
        """
        feats, head = model.extract_feat(batch['inputs']), model.roi_head
        count = len(batch['data_samples'])
        found = []
        reader = reader_of(getattr(model, 'rpn_head', None))
        if reader is not None:
            if type(self._reader) is not reader:
                self._reader = reader()
            found += self._reader.read(model.rpn_head, 'rpn_head', feats)
        for stage, (name, box_head) in enumerate(_stages(head, 'bbox_head')):
            rois = anchor[f'rois.{stage}']
            result = _box_forward(head, stage, feats, rois)
            for i in range(count):
                here = _of_image(i, count, rois)
                found.append(_rows(name, box_head, result, rois, here))
        for stage, (name, _) in enumerate(self._masks(head)):
            if not self.runs_masks:
                nothing = feats[0].new_zeros((0, 0), dtype=torch.float)
                found += [DetectionOutputs(name, nothing, 'sigmoid')] * count
                continue
            rois, labels = anchor['mask_rois'], anchor['mask_labels']
            masks = _mask_forward(head, stage, feats, rois).float()
            if masks.shape[1] == 1:  # class-agnostic
                labels = torch.zeros_like(labels)
            every = torch.arange(len(labels), device=labels.device)
            logits = masks[every, labels].flatten(1)
            found += [
                DetectionOutputs(
                    name, logits[_of_image(i, count, rois)], 'sigmoid'
                )
                for i in range(count)
            ]
        return found

    def _masks(self, head: nn.Module) -> list[tuple[str, nn.Module]]:
        """Names and modules of the mask heads that were asked for."""
        if not self.mask or not head.with_mask:
            return []
        return [
            pair
            for pair in _stages(head, 'mask_head')
            if isinstance(pair[1], FCNMaskHead)
        ]


def _stages(head: nn.Module, kind: str) -> list[tuple[str, nn.Module]]:
    """Names and modules of all stages of a box or mask head."""
    found, name = getattr(head, kind, None), f'roi_head.{kind}'
    if isinstance(found, nn.ModuleList):
        return [(f'{name}.{i}', m) for i, m in enumerate(found)]
    return [(name, found)]


def _proposals(
    model: nn.Module, feats: Sequence[Tensor], samples: list
) -> list[Tensor]:
    """Proposals (P, 4) of each image, best first, in pixels."""
    if getattr(model, 'rpn_head', None) is None:
        results = [sample.proposals for sample in samples]
    else:
        results = model.rpn_head.predict(feats, samples, rescale=False)
    return [get_box_tensor(r.bboxes)[:MAX_ROIS].float() for r in results]


def _box_forward(
    head: nn.Module, stage: int, feats: Sequence[Tensor], rois: Tensor
) -> dict[str, Tensor]:
    """``cls_score`` (P, C + 1) and ``bbox_pred`` of a stage."""
    if isinstance(head, CascadeRoIHead):
        return head._bbox_forward(stage, feats, rois)
    return head._bbox_forward(feats, rois)


def _mask_forward(
    head: nn.Module, stage: int, feats: Sequence[Tensor], rois: Tensor
) -> Tensor:
    """Mask logits of a stage, shape (M, C or 1, h, w)."""
    if isinstance(head, CascadeRoIHead):
        return head._mask_forward(stage, feats, rois)['mask_preds']
    return head._mask_forward(feats, rois)['mask_preds']


def _refine(
    box_head: nn.Module,
    rois: Tensor,
    labels: Tensor,
    deltas: Tensor,
    samples: list,
) -> Tensor:
    """Boxes that a stage of the float cascade hands to the next, (P, 5)."""
    refined = rois.clone()
    for i, sample in enumerate(samples):
        here = rois[:, 0] == i
        refined[here, 1:] = get_box_tensor(
            box_head.regress_by_class(
                rois[here, 1:], labels[here], deltas[here], sample.metainfo
            )
        ).float()
    return refined


def _surest(confidence: Tensor, image: Tensor) -> Tensor:
    """Ascending indices of the ``MAX_MASKS`` best boxes of each image."""
    order = confidence.argsort(descending=True, stable=True)
    kept = [order[image[order] == i][:MAX_MASKS] for i in image.unique()]
    return torch.cat([*kept, order[:0]]).sort()[0]


def _of_image(i: int, count: int, rois: Tensor) -> Tensor | slice:
    """Index of the boxes (P, 5) of image ``i`` of so many.

    How many a mask has, a GPU would have to be asked; of one image all are.
    """
    return slice(None) if count == 1 else rois[:, 0] == i


def _rows(
    name: str,
    box_head: nn.Module,
    result: dict[str, Tensor],
    rois: Tensor,
    here: Tensor | slice,
) -> DetectionOutputs:
    """Outputs of one box head on one image.

    Args:
        name (str): Name of the head.
        box_head (nn.Module): The head.
        result (dict[str, Tensor]): ``cls_score`` (P, C + 1) and
            ``bbox_pred`` (P, 4) or (P, C * 4) or None, of all images.
        rois (Tensor): Shape (P, 5).
        here (Tensor | slice): Boxes of the image, of :func:`_of_image`.

    Returns:
        DetectionOutputs: Of the image's boxes, in their order.
    """
    logits = result['cls_score'][here].float()
    boxes, priors = result['bbox_pred'], rois[here, 1:]
    if boxes is not None:
        boxes = boxes[here].float()
        if not box_head.reg_class_agnostic:
            boxes = boxes.unflatten(1, (-1, 4))

    def decode(picked: Tensor, rows: Tensor) -> Tensor:
        """Corners (M, 4) in pixels of raw boxes (M, 4) of rows (M, )."""
        return get_box_tensor(box_head.bbox_coder.decode(priors[rows], picked))

    return DetectionOutputs(
        name,
        logits,
        'softmax',
        logits.shape[1] - 1,
        boxes,
        decode if boxes is not None else None,
    )
