# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Quantize-dequantize in one kernel of a GPU.

Small images keep a GPU waiting for the next kernel, so that what counts is
their number: six of the plain chain become one, with the same result to the
bit. PyTorch compiles them at their first call.
"""

import warnings
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

_FORWARD = """
template <typename T> T fake_quantize(T x, T s, T z, T low, T high) {
    T code = rint(x / s) + z;
    code = code < low ? low : (code > high ? high : code);
    return (code - z) * s;
}
"""
_INPUT_GRADIENT = """
template <typename T>
T input_gradient(T grad, T x, T s, T z, T low, T high) {
    T code = rint(x / s) + z;
    return code >= low && code <= high ? grad : grad * T(0);
}
"""
_SCALE_GRADIENT = """
template <typename T>
T scale_gradient(T grad, T x, T s, T z, T low, T high) {
    T ratio = x / s;
    T code = rint(ratio) + z;
    bool inside = code >= low && code <= high;
    T cut = code < low ? low : (code > high ? high : code);
    return ((cut - z) - (inside ? ratio : T(0))) * grad;
}
"""

Kernel = Callable[..., Tensor]


@lru_cache(maxsize=1)
def kernels() -> dict[str, Kernel]:
    """The kernels by name, each tried once; empty where they do not work.

    Returns:
        dict[str, Callable]: ``fake_quantize(x, s, z, low=, high=)``, and
        with the gradient of its output before these ``input_gradient`` and
        ``scale_gradient``, the latter still to be summed.
    """
    codes = dict(
        fake_quantize=_FORWARD,
        input_gradient=_INPUT_GRADIENT,
        scale_gradient=_SCALE_GRADIENT,
    )
    x = torch.tensor([-9.0, -1.5, 2.5, 9.0], device='cuda')
    s, z = x.new_tensor(1.0), x.new_tensor(1, dtype=torch.int32)
    try:
        make = torch.cuda.jiterator._create_jit_fn
        found = {n: make(code, low=0.0, high=4.0) for n, code in codes.items()}
        y = found['fake_quantize'](x, s, z, low=0.0, high=4.0)
        found['input_gradient'](x, x, s, z, low=0.0, high=4.0)
        found['scale_gradient'](x, x, s, z, low=0.0, high=4.0)
        good = y.tolist() == [-1.0, -1.0, 2.0, 3.0]
        why = 'wrong results'
    except Exception as error:  # of a compiler, a driver, another PyTorch
        good, why = False, f'{type(error).__name__}: {error}'
    if good:
        return found
    line = why.splitlines()[0] if why else ''
    warnings.warn(
        f'the fused quantization kernels do not work here ({line[:200]}); '
        'several kernels take their place, with the same results',
        stacklevel=2,
    )
    return {}


def usable(x: Tensor) -> bool:
    """Whether a tensor can go through the kernels."""
    return (
        x.is_cuda
        and type(x) in (Tensor, torch.nn.Parameter)
        and not torch.compiler.is_compiling()
        and not torch._C._is_tracing()
        and bool(kernels())
    )
