# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Detectors with random weights and images to run them on."""
import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from torch import nn


def config_path(path: str | Path) -> Path:
    """Path of a config that MMDetection ships, for ``mmdet::...``."""
    name = str(path)
    if name.startswith('mmdet::'):
        import mmdet
        root = Path(mmdet.__file__).parent / '.mim' / 'configs'
        return root / name.removeprefix('mmdet::')
    return Path(path)


def random_detector(path: str | Path) -> nn.Module:
    """A detector with seeded random weights, nothing downloaded.

    Args:
        path (str | Path): Its config, a file or ``mmdet::...``.

    Returns:
        nn.Module: In eval mode, on the CPU.
    """
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules
    register_all_modules(init_default_scope=True)
    cfg = Config.fromfile(str(config_path(path)))
    model_cfg = _without_pretrained(copy.deepcopy(cfg.model))
    torch.manual_seed(0)
    return MODELS.build(model_cfg).eval()


def _without_pretrained(cfg: Any) -> Any:
    if isinstance(cfg, dict):
        if 'pretrained' in cfg and isinstance(cfg['pretrained'], str | dict):
            cfg['pretrained'] = None
        init = cfg.get('init_cfg')
        if isinstance(init, dict) and init.get('type') == 'Pretrained':
            cfg['init_cfg'] = None
        for value in cfg.values():
            _without_pretrained(value)
    elif isinstance(cfg, list | tuple):
        for value in cfg:
            _without_pretrained(value)
    return cfg


def noise_batches(count: int, size: tuple[int, int]) -> list[dict]:
    """One-image batches of smooth seeded noise with a few rectangles.

    Args:
        count (int): How many.
        size (tuple[int, int]): Height and width.

    Returns:
        list[dict]: As ``model.test_step`` takes them.
    """
    from mmdet.structures import DetDataSample
    rng = np.random.default_rng(0)
    height, width = size
    found = []
    for i in range(count):
        coarse = torch.from_numpy(rng.random((1, 3, 8, 8), np.float32))
        image = nn.functional.interpolate(
            coarse, size, mode='bicubic')[0].clamp(0, 1) * 255
        for _ in range(6):
            y, x = rng.integers(0, height - 16), rng.integers(0, width - 16)
            h, w = rng.integers(8, height // 2), rng.integers(8, width // 2)
            color = torch.from_numpy(rng.random(3, np.float32)) * 255
            image[:, y:y + h, x:x + w] = color[:, None, None]
        sample = DetDataSample(metainfo=dict(
            img_id=i, img_path=f'{i}.png', ori_shape=size, img_shape=size,
            batch_input_shape=size, pad_shape=size, scale_factor=(1., 1.),
            flip=False))
        found.append(dict(inputs=[image.byte()], data_samples=[sample]))
    return found


def settle_batch_norms(model: nn.Module, data: list[dict]) -> None:
    """Takes batch norm statistics from the images."""
    norms = [m for m in model.modules()
             if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.train()
        norm.momentum = 0.9
    with torch.no_grad():
        for batch in data:
            inputs = model.data_preprocessor(copy.deepcopy(batch), False)
            model(**inputs, mode='tensor')
    model.eval()
