# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""A unit of a RetinaNet and what comes after it, written out."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmdet_ptq.context import forward_context


def suffix(
    model: nn.Module, unit: str, run: Callable[[], Any]
) -> Callable[[], list[Tensor]]:
    """A chosen unit of a RetinaNet and what comes after it, nothing else.

    Written out for this detector, so that it shares no code with the replay
    whose cost it is compared with. What goes in is constant: nothing is
    fetched, copied, mixed or hooked when it runs.

    Args:
        model (nn.Module): The detector, its prefix set as it should be.
        unit (str): One of :func:`steps.chosen`.
        run (Callable): Runs the detector on one image.

    Returns:
        Callable: Gives the maps of the head that the unit reaches: scores
        of all levels, and boxes of all levels if it is in the backbone.
    """
    inputs, outputs = {}, {}
    neck, head = model.neck, model.bbox_head
    block = model.get_submodule(unit)
    laterals = list(neck.lateral_convs)[:-1]

    def note(module: nn.Module, args: tuple, output: Any) -> None:
        # a head calls its layers once a level; the first input is enough
        inputs.setdefault(module, args[0])
        outputs.setdefault(module, output)

    with ExitStack() as stack:
        for module in (block, neck, *laterals):
            handle = module.register_forward_hook(note)
            stack.callback(handle.remove)
        with torch.no_grad():
            run()
    if not unit.startswith('backbone.'):
        return partial(_tower, model, outputs[neck])
    constants = {one: outputs[one] for one in laterals}
    *stages, _ = inputs[neck]

    def forward() -> list[Tensor]:
        with ExitStack() as stack:
            stack.enter_context(forward_context())
            for one, value in constants.items():
                one.forward = lambda _, value=value: value
                stack.callback(delattr, one, 'forward')
            scores, boxes = head(neck((*stages, block(inputs[block]))))
        return [*scores, *boxes]

    return forward


def _tower(model: nn.Module, feats: tuple[Tensor, ...]) -> list[Tensor]:
    """Scores of all levels; the first layer is the unit."""
    head, found = model.bbox_head, []
    with forward_context():
        for x in feats:
            for conv in head.cls_convs:
                x = conv(x)
            found.append(head.retina_cls(x))
    return found
