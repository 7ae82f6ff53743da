# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Raw outputs of detectors, and how alike they are."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmcv.ops.nms import NMSop
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class Selections(TorchFunctionMode):
    """Records what was chosen by value, or makes it be chosen again.

    Outputs of a float and a quantized detector can be compared row by row
    only if both kept the same candidates in the same order. Top-k, sorting
    and masks choose; so does asking which values are their neighbourhood's
    maximum, by comparing a map with its max-pooled self (SOLO).

    Args:
        replay (list, optional): What to choose, as recorded in ``made``.

    Attributes:
        made (list): Index and mask tensors in the order of their calls.
    """

    names = ('topk', 'sort', 'argsort', 'nonzero', 'eq')

    def __init__(self, replay: list | None = None) -> None:
        """Prepares to record, or to choose what was recorded."""
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
        """Runs a torch function and sees to what it chose."""
        out = func(*args, **(kwargs or {}))
        # `a == b` arrives as `__eq__` or `eq`
        name = getattr(func, '__name__', '').strip('_')
        if name not in self.names:
            return out
        if name == 'eq' and not all(
            isinstance(x, Tensor) and x.is_floating_point() and x.dim()
            for x in args[:2]
        ):
            return out
        # `nonzero(as_tuple=True)`: a tensor for each axis
        axes = name == 'nonzero' and isinstance(out, tuple)
        index = torch.stack(out) if axes else out
        index = index if isinstance(index, Tensor) else index[1]
        if self.replay is None:
            self.made.append(index)
            return out
        if not self.replay or self.replay[0].shape != index.shape:
            return out
        index = self.replay.pop(0)
        if axes:
            return index.unbind()
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
    """Runs a detector in one mode.

    Args:
        model (nn.Module): The detector.
        batch (dict): One batch.
        memory (dict): See :func:`raw_outputs`.
        mode (str): 'tensor' or 'predict'.
        replay (list, optional): See :class:`Selections`.

    Returns:
        tuple[Any, list]: Its raw output, for 'predict' the first head's,
        and what was selected.
    """
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
            _same_choices(model, selections, memory),
        ):
            out = model(**data, mode=mode)
    finally:
        for handle in handles:
            handle.remove()
    # heads after the first may see what was detected, not raw features
    return (seen[:1] if mode == 'predict' else out), selections.made


@contextmanager
def _same_choices(
    model: nn.Module, selections: Selections, memory: dict
) -> Iterator[None]:
    """Keeps proposals and what NMS kept, or gives them again.

    Args:
        model (nn.Module): The detector. Wherever it has an ``rpn_head``,
            what its ``predict_by_feat`` returns is kept.
        selections (Selections): Forgets what was chosen on the way to
            proposals, which are given as a whole.
        memory (dict): See :func:`raw_outputs`.

    Yields:
        None: While the detector may run.
    """
    # a prediction drops low scores first, so that indices do not fit
    same = memory.get('mode') == 'tensor'
    kept = list(memory.get('kept', [])) if same else []
    made: list[Tensor] = []
    proposals = memory.setdefault('proposals', {})
    suppress = NMSop.__dict__['forward']

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        """NMS: indices of the kept boxes, shape (K, )."""
        found = suppress.__func__(*args, **kwargs)
        made.append(found)
        return kept.pop(0) if kept else found

    def proposing(name: str, original: Callable) -> Callable:
        """Makes an RPN's method return what it first returned."""

        def predict_by_feat(*args: Any, **kwargs: Any) -> Any:
            """The same proposals whatever the features."""
            if name not in proposals:
                before = len(made), len(selections.made)
                proposals[name] = original(*args, **kwargs)
                del made[before[0] :], selections.made[before[1] :]
            return copy.deepcopy(proposals[name])

        return predict_by_feat

    rpns = _rpns(model)
    for name, rpn in rpns.items():
        rpn.predict_by_feat = proposing(name, rpn.predict_by_feat)
    NMSop.forward = staticmethod(forward)
    try:
        yield
        memory.setdefault('kept', made)
    finally:
        NMSop.forward = suppress
        for rpn in rpns.values():
            del rpn.predict_by_feat


def _rpns(model: nn.Module) -> dict[str, nn.Module]:
    """Heads that make proposals, by name."""
    return {
        n: m
        for n, m in model.named_modules()
        if 'rpn_head' in n.split('.') and hasattr(m, 'predict_by_feat')
    }


@contextmanager
def bfloat16(model: nn.Module) -> Iterator[None]:
    """Rounds weight matrices and the inputs of their layers to bfloat16.

    As much as mixed precision disturbs a detector, which is nothing to a
    trained one: where this changes the output of a random network, an
    equal change by quantization says nothing about quantization.

    Args:
        model (nn.Module): A float detector; as it was on exit.

    Yields:
        None: While it computes so.
    """
    saved, hooks = [], []

    def round_input(_: nn.Module, args: tuple) -> tuple:
        """The first argument at 8 significant bits."""
        if not args or not isinstance(args[0], Tensor):
            return args
        return (args[0].bfloat16().to(args[0].dtype), *args[1:])

    try:
        for module in model.modules():
            weight = module._parameters.get('weight')
            if weight is None or weight.dim() < 2:
                continue
            saved.append((weight, weight.data))
            weight.data = weight.data.bfloat16().to(weight.dtype)
            if not isinstance(module, nn.Embedding):
                hooks.append(module.register_forward_pre_hook(round_input))
        yield
    finally:
        # a shared weight was saved twice, the second time rounded
        for weight, data in reversed(saved):
            weight.data = data
        for hook in hooks:
            hook.remove()


def _flatten(out: Any, into: list[Tensor]) -> None:
    """Appends every non-empty float tensor of nested containers.

    Args:
        out (Any): Tensors in lists, tuples and dicts.
        into (list[Tensor]): Where they go.
    """
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
    """How alike two lists of outputs are.

    Args:
        a (list[Tensor]): Tensors of any shape.
        b (list[Tensor]): As many, of the same shapes.

    Returns:
        float: The lowest cosine over tensors that are not zero in both, in
        [-1, 1]; -1 where shapes differ or there is nothing to compare.
    """
    if (
        not a
        or len(a) != len(b)
        or any(x.shape != y.shape for x, y in zip(a, b, strict=True))
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
