# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Detectors with random weights, and images for them."""

import copy
import logging
from pathlib import Path

import numpy as np
import torch
from mmcv.ops import DeformConv2dPack, ModulatedDeformConv2dPack
from mmdet.models.backbones.trident_resnet import TridentConv
from mmengine.config import Config
from torch import Tensor, nn

from ..engine.untrained import config_path, without_pretrained


def random_detector(path: str | Path, heads: bool = False) -> nn.Module:
    """A detector with seeded random weights, nothing downloaded.

    Args:
        path (str | Path): Its config, a file or ``mmdet::...``.
        heads (bool): Whether neck and heads too start as MMDetection starts
            them. Their prediction layers then start near zero, and few
            things are detected. Defaults to False: as PyTorch does.

    Returns:
        nn.Module: In eval mode, on the CPU.
    """
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules

    register_all_modules(init_default_scope=True)
    cfg = Config.fromfile(str(config_path(path)))
    model_cfg = without_pretrained(copy.deepcopy(cfg.model))
    torch.manual_seed(0)
    model = MODELS.build(model_cfg)
    start = model if heads else getattr(model, 'backbone', None)
    if start is not None:
        # MMEngine logs a line for each parameter
        logging.disable(logging.INFO)
        try:
            start.init_weights()
        finally:
            logging.disable(logging.NOTSET)
    calm(model)
    # distilling detectors return None here
    model.eval()
    return model


def calm(model: nn.Module) -> None:
    """Makes a random network one in which small errors stay small.

    With random weights and norms of bias 0, every layer of conv, norm and
    ReLU multiplies the relative power of an error by 1 / (1 - 1 / pi), 1.7
    dB: after fifty layers two runs that differ by one rounding have little
    in common, quantized or not. A norm bias of 1.5 keeps activations in the
    nearly linear part (0.2 dB a layer). Residual branches that MMDetection
    starts at zero get a small weight, so that they count. So do offsets of
    deformable convolutions: in a map of random features the next pixel has
    nothing to do with this one, and errors of offsets of many pixels would
    be all that is seen.

    Args:
        model (nn.Module): A detector; changed in place.
    """
    norms = nn.modules.batchnorm._BatchNorm
    for module in model.modules():
        # Deformable DETR takes it as memory happens to be
        embed = module._parameters.get('level_embed')
        if embed is not None:
            nn.init.normal_(embed)
        # and TridentNet its weights
        if isinstance(module, TridentConv):
            nn.init.kaiming_normal_(module.weight, nonlinearity='relu')
        if isinstance(module, DeformConv2dPack | ModulatedDeformConv2dPack):
            fan_in = module.conv_offset.weight[0].numel()
            nn.init.normal_(module.conv_offset.weight, std=0.3 / fan_in**0.5)
        if not isinstance(module, norms) or module.weight is None:
            continue
        if bool(module.weight.any()):
            nn.init.constant_(module.bias, 1.5)
        else:
            nn.init.constant_(module.weight, 0.2)


def noise_batches(
    count: int, size: tuple[int, int], proposals: int = 0
) -> list[dict]:
    """One-image batches of smooth seeded noise with a few rectangles.

    Args:
        count (int): How many.
        size (tuple[int, int]): Height and width in pixels.
        proposals (int): How many random boxes each sample brings along, for
            detectors that make no proposals themselves. Defaults to 0: no
            such field, which detectors with an RPN would take over theirs.

    Returns:
        list[dict]: As ``model.test_step`` takes them.
    """
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    rng = np.random.default_rng(0)
    height, width = size
    found = []
    for i in range(count):
        image = _noise(rng, size)
        sample = DetDataSample(
            metainfo=dict(
                img_id=i,
                img_path=f'{i}.png',
                ori_shape=size,
                img_shape=size,
                batch_input_shape=size,
                pad_shape=size,
                scale_factor=(1.0, 1.0),
                flip=False,
                border=np.array([0, height, 0, width]),
            )
        )
        # the raw mode of query-based RoI heads reads them
        sample.gt_instances = InstanceData(
            bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long)
        )
        if proposals:
            sample.proposals = InstanceData(bboxes=_boxes(proposals, size))
        found.append(dict(inputs=[image.byte()], data_samples=[sample]))
    return found


def _noise(rng: np.random.Generator, size: tuple[int, int]) -> Tensor:
    """One image, shape (3, height, width), from 0 to 255."""
    height, width = size
    coarse = torch.from_numpy(rng.random((1, 3, 8, 8), np.float32))
    smooth = nn.functional.interpolate(coarse, size, mode='bicubic')[0]
    image = smooth.clamp(0, 1) * 255
    for _ in range(6):
        y, x = rng.integers(0, height - 16), rng.integers(0, width - 16)
        h, w = rng.integers(8, height // 2), rng.integers(8, width // 2)
        color = torch.from_numpy(rng.random(3, np.float32)) * 255
        image[:, y : y + h, x : x + w] = color[:, None, None]
    return image


def _boxes(count: int, size: tuple[int, int]) -> Tensor:
    """Boxes that tile an image, each in three sizes.

    Args:
        count (int): How many.
        size (tuple[int, int]): Height and width of the image in pixels.

    Returns:
        Tensor: Corners (x1, y1, x2, y2) in pixels, shape (count, 4).
    """
    height, width = size
    at = torch.arange(count)
    side = 8.0 * 2 ** (at % 3)
    x = at * 37 % (width - 32)
    y = at * 23 % (height - 32)
    return torch.stack([x, y, x + side, y + side], 1)


def settle_batch_norms(model: nn.Module, data: list[dict]) -> None:
    """Takes batch norm statistics from images.

    Args:
        model (nn.Module): In eval mode, and so again afterwards.
        data (list[dict]): Batches.
    """
    norms = [
        m
        for m in model.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm)
    ]
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
        norm.momentum = 1.0
    # one batch: statistics have to hold what differs between the images
    together = {
        k: [x for batch in copy.deepcopy(data) for x in batch[k]]
        for k in data[0]
    }
    try:
        with torch.no_grad():
            model(**model.data_preprocessor(together, False), mode='tensor')
    finally:
        model.eval()
