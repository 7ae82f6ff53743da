# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Quantize-dequantize in one kernel of a GPU.

Small images keep a GPU waiting for the next kernel, so that what counts is
their number: six of the plain chain become one, with the same result to the
bit. PyTorch compiles them at their first call.

A zero point comes as the bits of its int32 in a float32 (:func:`bits_of`):
tensors of one dtype take the fast way through PyTorch's kernels, and a cast
would be one more launch in each call.
"""

import warnings
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

_CODES = dict(
    fake_quantize="""
template <typename T> T fake_quantize(T x, T s, T z, T low, T high) {
    T zero = __float_as_int(z);
    T code = rint(x / s) + zero;
    code = code < low ? low : (code > high ? high : code);
    return (code - zero) * s;
}
""",
    input_gradient="""
template <typename T>
T input_gradient(T grad, T x, T s, T z, T low, T high) {
    T code = rint(x / s) + T(__float_as_int(z));
    return code >= low && code <= high ? grad : grad * T(0);
}
""",
    scale_gradient="""
template <typename T>
T scale_gradient(T grad, T x, T s, T z, T low, T high) {
    T zero = __float_as_int(z);
    T ratio = x / s;
    T code = rint(ratio) + zero;
    bool inside = code >= low && code <= high;
    T cut = code < low ? low : (code > high ? high : code);
    return ((cut - zero) - (inside ? ratio : T(0))) * grad;
}
""",
)
# of x = -9, -1.5, 2.5, 9 as tensor and as gradient; s = z = 1, codes 0 to 4
_RIGHT = dict(
    fake_quantize=[-1.0, -1.0, 2.0, 3.0],
    input_gradient=[0.0, 0.0, 2.5, 0.0],
    scale_gradient=[9.0, 1.5, -1.25, 27.0],
)

Kernel = Callable[..., Tensor]


def bits_of(zero_point: Tensor) -> Tensor:
    """An int32 tensor as a kernel takes it: a view, seen as float32."""
    return zero_point.view(torch.float32)


@lru_cache(maxsize=len(_CODES))
def kernel(name: str) -> Kernel | None:
    """A kernel, tried once.

    Args:
        name (str): ``'fake_quantize'``, of ``(x, s, z, low=, high=)``, or
            with the gradient of its output before these
            ``'input_gradient'`` or ``'scale_gradient'``, the latter still
            to be summed.

    Returns:
        Callable | None: None where it does not work, after a warning.
    """
    x = torch.tensor([-9.0, -1.5, 2.5, 9.0], device='cuda')
    z = bits_of(x.new_ones(1, dtype=torch.int32))
    given = [x, x.new_ones(1), z]
    if name != 'fake_quantize':
        given.insert(0, x)
    try:
        made: Kernel = torch.cuda.jiterator._create_jit_fn(
            _CODES[name], low=0.0, high=4.0
        )
        if made(*given, low=0.0, high=4.0).tolist() == _RIGHT[name]:
            return made
        why = 'wrong results'
    except Exception as error:  # of a compiler, a driver, another PyTorch
        why = ''.join(f'{type(error).__name__}: {error}'.splitlines()[:1])
    warnings.warn(
        f'the fused kernel {name!r} does not work here ({why[:200]}); '
        'several kernels take its place, with the same results',
        stacklevel=2,
    )
    return None


def fused(name: str, low: int, high: int, *tensors: Tensor) -> Tensor:
    """Runs a kernel that :func:`usable` said works."""
    made = kernel(name)
    assert made is not None
    # other types of numbers would be another kernel to compile
    return made(*tensors, low=float(low), high=float(high))


def usable(x: Tensor, name: str) -> bool:
    """Whether a tensor can go through a kernel.

    Not in a graph that is being made, nor where something looks at each
    operation: the kernels are no operations of PyTorch.

    Args:
        x (Tensor): Of any device.
        name (str): Of the kernel.
    """
    return (
        x.is_cuda
        and type(x) in (Tensor, torch.nn.Parameter)
        and not torch.compiler.is_compiling()
        and not torch._C._is_tracing()
        and not torch._C._len_torch_dispatch_stack()
        and kernel(name) is not None
    )
