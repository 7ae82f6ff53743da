# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Integer codes into exactly their number of bits."""

import numpy as np
import torch
from torch import Tensor


def check_codes(codes: Tensor) -> None:
    """Refuses what are no codes.

    Raises:
        ValueError: If the dtype is not one of integers.
    """
    if (
        codes.is_floating_point()
        or codes.is_complex()
        or codes.dtype == torch.bool
    ):
        raise ValueError(
            f'codes are integers, got {codes.dtype}; encode the tensor first'
        )


def pack(codes: Tensor, bits: int) -> Tensor:
    """Packs codes without gaps, most significant bit first.

    Args:
        codes (Tensor): Integers from 0 to ``2**bits - 1``, any shape.
        bits (int): 1 to 8.

    Returns:
        Tensor: uint8 of ``ceil(numel * bits / 8)`` bytes.

    Raises:
        ValueError: If these are no integers, or one does not fit.

    Examples:
        >>> pack(torch.tensor([1, 2, 3, 0]), 2)
        tensor([108], dtype=torch.uint8)
    """
    check_codes(codes)
    flat = codes.detach().cpu().reshape(-1)
    if flat.numel() and not 0 <= int(flat.min()) <= int(flat.max()) < 2**bits:
        raise ValueError(
            f'codes from {int(flat.min())} to {int(flat.max())} '
            f'do not fit {bits} bits'
        )
    data = flat.to(torch.uint8).numpy()
    if bits == 8:
        return torch.from_numpy(data.copy())
    planes = np.unpackbits(data[:, None], axis=1)[:, 8 - bits :]
    return torch.from_numpy(np.packbits(planes.reshape(-1)))


def unpack(packed: Tensor, bits: int, shape: tuple[int, ...]) -> Tensor:
    """Inverse of :func:`pack`.

    Args:
        packed (Tensor): uint8.
        bits (int): As it was packed.
        shape (tuple[int, ...]): Shape of the codes.

    Returns:
        Tensor: int32 of ``shape``.

    Raises:
        ValueError: If ``packed`` is not uint8, or its length does not fit
            bits and shape.
    """
    if packed.dtype != torch.uint8:
        raise ValueError(f'packed codes are uint8, got {packed.dtype}')
    count = int(np.prod(shape, dtype=np.int64))
    if packed.numel() != -(-count * bits // 8):
        raise ValueError(
            f'{packed.numel()} bytes are not {count} codes of {bits} bits'
        )
    data = packed.cpu().numpy()
    if bits < 8:
        planes = np.unpackbits(data)[: count * bits].reshape(count, bits)
        wide = np.zeros((count, 8), np.uint8)
        wide[:, 8 - bits :] = planes
        data = np.packbits(wide, axis=1)
    return torch.from_numpy(data.astype(np.int32)).reshape(shape)
