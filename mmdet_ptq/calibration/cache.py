# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Activations kept within a bound of memory, beyond it on disk."""

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ..errors import CalibrationError, QuantConfigError

DTYPES = {'float32': torch.float32, 'float16': torch.float16}


class ActivationCache:
    """Holds tensors in memory up to a bound, the rest in one file.

    Args:
        limit (int): Bytes that may stay in memory.
        folder (str | Path): Where the file goes; it is removed by
            :meth:`close` and has no name once it is open.
        dtype (str): ``'float32'`` keeps floating tensors as they are;
            ``'float16'`` halves them, saturating at 65504.

    Attributes:
        in_memory (int): Bytes held in memory.
        on_disk (int): Bytes written to the file.
        step (int): Bytes of the largest step that was checked.
    """

    def __init__(
        self, limit: int, folder: str | Path, dtype: str = 'float32'
    ) -> None:
        self.limit = limit
        self.folder = Path(folder)
        self.half = DTYPES[dtype] is torch.float16
        self.in_memory = 0
        self.on_disk = 0
        self.step = 0
        self._file: Any = None
        self._free: list[tuple[int, int]] = []
        self._end = 0

    def keep(self, tree: Any, exact: bool = False) -> Any:
        """Copies the tensors of a nested value into the cache.

        Args:
            tree (Any): Tensors in lists, tuples and dicts, with any other
                values between them.
            exact (bool): Whether ``dtype`` is not for these: float16 has
                no numbers as small as gradients. Defaults to False.

        Returns:
            Any: The same, with an entry for each tensor; for
            :meth:`fetch` and :meth:`drop`.

        Raises:
            CalibrationError: If the disk is full.
        """
        return tree_map_only(Tensor, lambda t: self._put(t, exact), tree)

    def fetch(self, tree: Any) -> Any:
        """The tensors that :meth:`keep` took, on their devices.

        They must not be written to.
        """
        return tree_map_only(_Entry, self._get, tree)

    def drop(self, tree: Any) -> None:
        """Gives the room of the entries back."""
        tree_map_only(_Entry, self._release, tree)

    @property
    def file_size(self) -> int:
        """Bytes that the file takes, gaps that are free again included."""
        return (
            0 if self._file is None else os.fstat(self._file.fileno()).st_size
        )

    def check_fits(self, size: int, what: str) -> None:
        """Refuses a bound that not even one step fits.

        Args:
            size (int): Bytes that one step needs at once.
            what (str): What they are, for the message.

        Raises:
            QuantConfigError: Says how much is needed.
        """
        self.step = max(self.step, size)
        if size > self.limit:
            raise QuantConfigError(
                f'calibration.cache: {self.limit} bytes are less than the '
                f'{size} bytes of {what}; give at least '
                f"cache='{-(-size // 2**20)}MiB', or a smaller batch_size"
            )

    def close(self) -> None:
        """Forgets everything and removes the file."""
        if self._file is not None:
            self._file.close()
        self._file = None
        self._free, self._end = [], 0
        self.in_memory = self.on_disk = 0

    def _put(self, tensor: Tensor, exact: bool) -> '_Entry':
        entry = _Entry(tensor.dtype, tuple(tensor.shape), tensor.device)
        data = tensor.detach()
        if self.half and not exact and data.dtype == torch.float32:
            data = data.clamp(-65504, 65504).half()
        size = data.numel() * data.element_size()
        entry.size = size
        if self.in_memory + size <= self.limit or not size:
            self.in_memory += size
            entry.data = data.clone()
            return entry
        entry.stored = data.dtype
        entry.offset = self._write(data.cpu().contiguous())
        self.on_disk += size
        return entry

    def _write(self, data: Tensor) -> int:
        if self._file is None:
            # unlinked at once: nothing is left behind by a kill
            self._file = tempfile.TemporaryFile(  # noqa: SIM115
                dir=self.folder
            )
        size = data.numel() * data.element_size()
        offset = self._room(size)
        try:
            self._file.seek(offset)
            self._file.write(data.view(-1).view(torch.uint8).numpy().data)
            self._file.flush()
        except OSError as error:
            raise CalibrationError(
                f'cannot write activations to {self.folder}: {error}. Free '
                'some space, use another --work-dir, fewer images, '
                "cache_dtype='float16' or a larger calibration.cache"
            ) from error
        return offset

    def _room(self, size: int) -> int:
        """The first gap that fits, or the end of the file."""
        for i, (offset, free) in enumerate(self._free):
            if free >= size:
                left = (offset + size, free - size)
                self._free[i : i + 1] = [left] if left[1] else []
                return offset
        # aligned, so that any dtype can be mapped
        offset = -(-self._end // 64) * 64
        self._end = offset + size
        return offset

    def _get(self, entry: '_Entry') -> Tensor:
        if entry.data is not None:
            return entry.data.to(entry.dtype)
        flat = np.memmap(
            self._file,
            mode='r',
            dtype=np.uint8,
            offset=entry.offset,
            shape=(entry.size,),
        )
        # a copy: a mapped page is read-only, torch tensors are not
        data = torch.from_numpy(np.array(flat)).view(entry.stored)
        return data.view(entry.shape).to(entry.device, entry.dtype)

    def _release(self, entry: '_Entry') -> None:
        if entry.data is not None:
            self.in_memory -= entry.size
            entry.data = None
        elif entry.size:
            self.on_disk -= entry.size
            self._free.append((entry.offset, entry.size))
        entry.size = 0


class _Entry:
    """Where one tensor is kept."""

    def __init__(
        self, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device
    ) -> None:
        self.dtype = dtype
        self.shape = shape
        self.device = device
        self.data: Tensor | None = None
        self.stored = dtype
        self.offset = 0
        self.size = 0
