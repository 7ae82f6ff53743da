# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Counts what would make a GPU wait for the CPU, without a GPU."""

from collections import Counter
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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
#: what takes tensors of the CPU along
BRING = ('copy_', 'index', 'index_put', 'index_put_')
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


class _Host:
    """Tensors that a GPU would not have: what came back, and what is made of
    that. To look at them costs nothing."""

    def add(self, tree):
        # of a named tuple, as frexp gives, the parts
        for t in _tensors(list(tree) if isinstance(tree, tuple) else tree):
            t.on_host = self

    def left(self, tensor):
        """The tensor as one that is not there."""
        tensor = tensor.view(tensor.shape)
        tensor.on_host = None
        return tensor

    def knows(self, tensor):
        return getattr(tensor, 'on_host', None) is self

    def has(self, tree):
        """Whether there are tensors, and all of them are there."""
        found = _tensors(tree)
        return bool(found) and all(map(self.knows, found))

    def torn(self, tree):
        """Whether tensors of both places meet; numbers go along."""
        places = {self.knows(t) for t in _tensors(tree) if t.dim()}
        return len(places) > 1


def _moves(args, kwargs):
    """Whether a call of ``to`` names a device, or a tensor that has one."""
    places = torch.device | Tensor
    return any(isinstance(a, places) for a in (*args[1:], *kwargs.values()))


def _tensors(tree):
    return [t for t in tree_leaves(tree) if isinstance(t, Tensor)]


class _Functions(TorchFunctionMode):
    def __init__(self, found, host):
        super().__init__()
        self.found, self.host = found, host

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, '__name__', str(func))
        # to the device of another tensor is no word for the CPU
        told = 'cpu' in [a for a in args[1:] if isinstance(a, str)] or (
            kwargs.get('device') == 'cpu' and isinstance(kwargs['device'], str)
        )
        away = func is Tensor.to and told
        if (func in LEAVES or away) and self.host.has(args):
            return func(*args, **kwargs)
        if func in LEAVES or away or (func in ARRIVES and not told):
            self.found[name] += 1
        elif func in MAKES and kwargs.get('device') is None:
            self.found[f'{name} without device'] += 1
        out = func(*args, **kwargs)
        if isinstance(out, Tensor) and (func is Tensor.cpu or away):
            # on a CPU it is the tensor itself, which stays where it is
            out = out.view(out.shape) if out is args[0] else out
            self.host.add(out)
        elif told and (func in MAKES or func in ARRIVES):
            self.host.add(out)
        elif func is Tensor.to and self.host.has(out) and _moves(args, kwargs):
            out = self.host.left(out)
        return out


class _Operators(TorchDispatchMode):
    def __init__(self, found, host):
        super().__init__()
        self.found, self.host = found, host

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        kwargs = kwargs or {}
        # a number goes along with tensors of either place
        told = args[0] if name == 'index' else (args, kwargs)
        if name == 'scalar_tensor' or self.host.has(told):
            out = func(*args, **kwargs)
            self.host.add(out)
            return out
        if name == 'copy_' and self.host.has(args[0]):
            self.found['copy_ to the CPU'] += 1
        elif name not in BRING and self.host.torn((args, kwargs)):
            self.found[f'{name} of two devices'] += 1
        masked = name in ('index', 'index_put', 'index_put_') and any(
            t is not None and t.dtype in (torch.bool, torch.uint8)
            for t in args[1]
        )
        # without the size of what comes out, that has to be looked up
        repeats = name == 'repeat_interleave' and 'output_size' not in kwargs
        if name in WAITS or masked or repeats:
            self.found[name] += 1
        return func(*args, **kwargs)


@contextmanager
def crossings():
    """Counts, by name, what crosses between CPU and GPU inside the block.

    On a CPU, the word ``'cpu'`` tells the two apart: a tensor that was taken
    there, or made there by it, is on the CPU, as what is computed from it.
    ``.to(x.device)`` brings it back. Where tensors of both places meet, a
    GPU would raise: that counts as well.

    Yields:
        Counter: How often each happened; filled while the block runs.
    """
    found = Counter()
    host = _Host()
    with _Functions(found, host), _Operators(found, host):
        yield found
