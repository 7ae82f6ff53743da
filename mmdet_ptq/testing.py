# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Detectors with random weights, images, and outputs to compare."""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.ops.nms import NMSop
from mmengine.config import Config
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


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
    model = MODELS.build(model_cfg)
    if hasattr(model, 'backbone'):
        # MMEngine logs a line for each parameter
        logging.disable(logging.INFO)
        try:
            model.backbone.init_weights()
        finally:
            logging.disable(logging.NOTSET)
    _calm(model)
    return model.eval()


def _calm(model: nn.Module) -> None:
    """Makes a random network one in which small errors stay small.

    With random weights and norms of bias 0, every layer of conv, norm and
    ReLU multiplies the relative power of an error by 1 / (1 - 1 / pi), 1.7
    dB: after fifty layers two runs that differ by one rounding have little
    in common, quantized or not. A norm bias of 1.5 keeps activations in the
    nearly linear part (0.2 dB a layer). Residual branches that MMDetection
    starts at zero get a small weight, so that they count.
    """
    norms = nn.modules.batchnorm._BatchNorm
    for module in model.modules():
        if not isinstance(module, norms) or module.weight is None:
            continue
        if bool(module.weight.any()):
            nn.init.constant_(module.bias, 1.5)
        else:
            nn.init.constant_(module.weight, 0.2)


def _without_pretrained(cfg: Any) -> Any:
    if isinstance(cfg, dict):
        if isinstance(cfg.get('pretrained'), str | dict):
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
        image = (
            nn.functional.interpolate(coarse, size, mode='bicubic')[0].clamp(
                0, 1
            )
            * 255
        )
        for _ in range(6):
            y, x = rng.integers(0, height - 16), rng.integers(0, width - 16)
            h, w = rng.integers(8, height // 2), rng.integers(8, width // 2)
            color = torch.from_numpy(rng.random(3, np.float32)) * 255
            image[:, y : y + h, x : x + w] = color[:, None, None]
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
        found.append(dict(inputs=[image.byte()], data_samples=[sample]))
    return found


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


class Selections(TorchFunctionMode):
    """Records what top-k and sorting chose, or makes them choose it again.

    Outputs of a float and a quantized detector can be compared row by row
    only if both kept the same candidates in the same order.
    """

    names = ('topk', 'sort', 'argsort', 'nonzero')

    def __init__(self, replay: list | None = None) -> None:
        super().__init__()
        self.made: list[Any] = []
        self.replay = list(replay) if replay is not None else None

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple = (),
        kwargs: dict | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if getattr(func, '__name__', '') not in self.names:
            return out
        index = out if isinstance(out, Tensor) else out[1]
        if self.replay is None:
            self.made.append(index)
            return out
        if not self.replay or self.replay[0].shape != index.shape:
            return out
        index = self.replay.pop(0)
        if isinstance(out, Tensor):
            return index
        dim = (kwargs or {}).get('dim', -1)
        return type(out)([args[0].gather(dim, index), index])


def raw_outputs(model: nn.Module, batch: dict, memory: dict) -> list[Tensor]:
    """Every float tensor of a raw forward, on equal proposals.

    Where a detector has no working raw mode, what its first head returns
    during a prediction.

    Args:
        model (nn.Module): The detector.
        batch (dict): One batch.
        memory (dict): Empty for the float model, which fills it with what
            was selected; given again, the same is selected.

    Returns:
        list[Tensor]: In the order of the output.
    """
    replay = memory.get('selections')
    try:
        if memory.get('mode') == 'predict':
            raise NotImplementedError
        out, made = _run(model, batch, memory, 'tensor', replay)
        memory['mode'] = 'tensor'
    except Exception:
        if memory.get('mode') == 'tensor':
            raise
        memory['mode'] = 'predict'
        out, made = _run(model, batch, memory, 'predict', replay)
    memory.setdefault('selections', made)
    flat: list[Tensor] = []
    _flatten(out, flat)
    return flat


def _run(
    model: nn.Module, batch: dict, memory: dict, mode: str, replay: list | None
) -> tuple[Any, list]:
    data = model.data_preprocessor(copy.deepcopy(batch), False)
    seen: list[Any] = []
    heads = [
        m
        for n, m in model.named_children()
        if n not in ('backbone', 'neck', 'data_preprocessor')
    ]
    handles = [
        h.register_forward_hook(lambda *a: seen.append(a[2]))
        for h in heads
        if mode == 'predict'
    ]
    selections = Selections(replay)
    try:
        with (
            torch.no_grad(),
            selections,
            _same_choices(getattr(model, 'rpn_head', None), memory),
        ):
            out = model(**data, mode=mode)
    finally:
        for handle in handles:
            handle.remove()
    # heads after the first may see what was detected, not raw features
    return (seen[:1] if mode == 'predict' else out), selections.made


@contextmanager
def _same_choices(rpn: nn.Module | None, memory: dict) -> Iterator[None]:
    """Keeps proposals and what NMS kept, or gives them again."""
    # a prediction drops low scores first, so that indices do not fit
    same = memory.get('mode') == 'tensor'
    kept = list(memory.get('kept', [])) if same else []
    made: list[Tensor] = []
    suppress = NMSop.__dict__['forward']

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        found = suppress.__func__(*args, **kwargs)
        made.append(found)
        return kept.pop(0) if kept else found

    def predict(*args: Any, **kwargs: Any) -> Any:
        if 'proposals' not in memory:
            memory['proposals'] = original(*args, **kwargs)
        return copy.deepcopy(memory['proposals'])

    original = getattr(rpn, 'predict', None)
    if original is not None:
        rpn.predict = predict
    NMSop.forward = staticmethod(forward)
    try:
        yield
        memory.setdefault('kept', made)
    finally:
        NMSop.forward = suppress
        if original is not None:
            del rpn.predict


def _flatten(out: Any, into: list[Tensor]) -> None:
    if isinstance(out, Tensor):
        if out.is_floating_point() and out.numel():
            into.append(out.detach().float())
    elif isinstance(out, dict):
        for value in out.values():
            _flatten(value, into)
    elif isinstance(out, list | tuple):
        for value in out:
            _flatten(value, into)


def cosine(a: list[Tensor], b: list[Tensor]) -> float:
    """The lowest cosine over tensors, -1 where shapes differ."""
    if len(a) != len(b) or any(
        x.shape != y.shape for x, y in zip(a, b, strict=True)
    ):
        return -1.0
    return min(
        (
            float(
                nn.functional.cosine_similarity(
                    x.double().flatten(), y.double().flatten(), 0
                )
            )
            for x, y in zip(a, b, strict=True)
            if bool(x.any() or y.any())
        ),
        default=1.0,
    )
