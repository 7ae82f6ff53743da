# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Counts what would make a GPU wait for the CPU, without a GPU."""

from collections import Counter
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

#: what the CPU has to know before it goes on: a number, or a shape
WAITS = (
    '_local_scalar_dense',
    'nonzero',
    'masked_select',
    '_unique2',
    'unique_dim',
    'unique_consecutive',
    'equal',
    'bincount',
)
#: what takes a tensor to the CPU; on a CPU the dispatcher never hears of it
LEAVES = {Tensor.cpu, Tensor.numpy, Tensor.tolist, Tensor.__array__}
#: what makes a tensor of numbers that the CPU has
ARRIVES = {torch.tensor, torch.as_tensor, torch.from_numpy}
#: what makes a tensor on the CPU unless told where
MAKES = {
    torch.arange,
    torch.bernoulli,
    torch.empty,
    torch.full,
    torch.linspace,
    torch.ones,
    torch.rand,
    torch.randint,
    torch.randn,
    torch.randperm,
    torch.zeros,
}


class _Functions(TorchFunctionMode):
    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, '__name__', str(func))
        # to the device of another tensor is no word for the CPU
        away = func is Tensor.to and any(
            isinstance(a, str) and a == 'cpu'
            for a in (*args[1:], *kwargs.values())
        )
        if func in LEAVES or func in ARRIVES or away:
            self.found[name] += 1
        elif func in MAKES and kwargs.get('device') is None:
            self.found[f'{name} without device'] += 1
        return func(*args, **kwargs)


class _Operators(TorchDispatchMode):
    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masked = name in ('index', 'index_put', 'index_put_') and any(
            t is not None and t.dtype in (torch.bool, torch.uint8)
            for t in args[1]
        )
        # without the size of what comes out, that has to be looked up
        repeats = name == 'repeat_interleave' and 'output_size' not in (
            kwargs or {}
        )
        if name in WAITS or masked or repeats:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def crossings():
    """Counts, by name, what crosses between CPU and GPU inside the block.

    Yields:
        Counter: How often each happened; filled while the block runs.
    """
    found = Counter()
    with _Functions(found), _Operators(found):
        yield found
