# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Images of a batch one after the other, where quantizers ask for that.

A tensor inside a detector does not say which of its rows are of which image:
windows and regions of all images of a batch lie one after the other. What
groups the channels of each image is right only if there is one. So the call
of the detector is divided, and not what happens inside.
"""

from functools import partial
from typing import Any

from torch import nn

from ..context import count_images, forward_context
from ..errors import PTQError
from ..quantizers import PerInstance
from .base import quant_layers


def divide_batches(model: nn.Module) -> None:
    """Has a detector predict on images one by one, if it has to.

    That is decided in each call: while an input is quantized by a
    ``PerInstance`` quantizer with ``images_apart``.

    Args:
        model (nn.Module): A detector of twins; its ``forward`` is replaced
            unless it was before.
    """
    if 'forward' not in model.__dict__:
        model.forward = partial(_forward, model)


def _forward(
    model: nn.Module,
    inputs: Any,
    data_samples: Any = None,
    mode: str = 'tensor',
    **kwargs: Any,
) -> Any:
    whole = type(model).forward
    count = count_images(inputs)
    if count is None or count < 2 or not _apart(model):
        return whole(model, inputs, data_samples, mode, **kwargs)
    if mode != 'predict':
        raise PTQError(
            f'mode={mode!r} with {count} images: the channels of each image '
            'are grouped by themselves, and only predictions of several '
            "images can be put together; use mode='predict', or a batch of "
            'one image'
        )
    found = []
    for i in range(count):
        samples = None if data_samples is None else data_samples[i : i + 1]
        with forward_context(1):
            found += whole(model, inputs[i : i + 1], samples, mode, **kwargs)
    return found


def _apart(model: nn.Module) -> bool:
    return any(
        isinstance(quantizer, PerInstance) and quantizer.images_apart
        for layer in quant_layers(model).values()
        if layer.quantize_act
        for quantizer in layer.act_quantizers.values()
    )
