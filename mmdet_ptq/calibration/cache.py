# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Activations kept within a bound of memory, beyond it on disk."""

import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from ..errors import CalibrationError, QuantConfigError
from .ahead import Ahead, ahead_of

DTYPES = {'float32': torch.float32, 'float16': torch.float16}


def room_on(device: torch.device) -> int:
    """Bytes that a cache may take of a GPU: a third of what is free now.

    The rest is left for the steps. What PyTorch holds and does not use
    counts as free. A CPU has none beside its memory.
    """
    if device.type != 'cuda':
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_reserved(device)
    return (free + held - torch.cuda.memory_allocated(device)) // 3


class ActivationCache:
    """Holds tensors in memory up to a bound, the rest in one file.

    Tensors of a GPU stay there as long as they take less than a third of
    what was free when the first of them came (:func:`room_on`). Those that
    come later go to pinned memory of the CPU up to the bound, then to the
    file; :meth:`prefetch` brings them back while a step runs.

    Args:
        limit (int): Bytes that may stay in memory of the CPU.
        folder (str | Path): Where the file goes; it is removed by
            :meth:`close` and has no name once it is open.
        dtype (str): ``'float32'`` keeps floating tensors as they are;
            ``'float16'`` halves them, saturating at 65504.
        room (Callable): Bytes that may stay on a device, by device.
        ahead (Callable): What loads tensors for a device before they are
            asked for, or None.

    Attributes:
        on_device (int): Bytes that stay on a GPU.
        in_memory (int): Bytes held in memory of the CPU.
        on_disk (int): Bytes written to the file.
        step (int): Bytes of the largest step that was checked.
    """

    def __init__(
        self,
        limit: int,
        folder: str | Path,
        dtype: str = 'float32',
        room: Callable[[torch.device], int] = room_on,
        ahead: Callable[[torch.device], Ahead | None] = ahead_of,
    ) -> None:
        self.limit = limit
        self.folder = Path(folder)
        self.half = DTYPES[dtype] is torch.float16
        self.on_device = 0
        self.in_memory = 0
        self.on_disk = 0
        self.step = 0
        self._room_on, self._ahead_of = room, ahead
        self._rooms: dict[torch.device, int] = {}
        self._ahead: Ahead | None = None
        self._lock = Lock()
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

    def prefetch(self, tree: Any) -> None:
        """Says what the next step will fetch, where that takes time.

        What an earlier call said and no step has fetched is forgotten with
        the second call after it.
        """
        away = [
            entry
            for entry in tree_leaves(tree)
            if isinstance(entry, _Entry) and entry.size and not entry.stays
        ]
        if away and self._ahead is None:
            self._ahead = self._ahead_of(away[0].device)
        if self._ahead is not None:
            self._ahead.order({e: partial(self._load, e) for e in away})

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
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None
        if self._file is not None:
            self._file.close()
        self._file = None
        self._free, self._end = [], 0
        self.on_device = self.in_memory = self.on_disk = 0

    def _put(self, tensor: Tensor, exact: bool) -> '_Entry':
        entry = _Entry(tensor.dtype, tuple(tensor.shape), tensor.device)
        data = tensor.detach()
        if self.half and not exact and data.dtype == torch.float32:
            data = data.clamp(-65504, 65504).half()
        size = data.numel() * data.element_size()
        entry.size = size
        if self.on_device + size <= self._room_of(data.device):
            self.on_device += size
            entry.data, entry.stays = data.clone(), True
            return entry
        if self.in_memory + size <= self.limit or not size:
            self.in_memory += size
            entry.data = _copied(data)
            return entry
        entry.stored = data.dtype
        entry.offset = self._write(data.cpu().contiguous())
        self.on_disk += size
        return entry

    def _room_of(self, device: torch.device) -> int:
        if device not in self._rooms:
            self._rooms[device] = self._room_on(device)
        return self._rooms[device]

    def _write(self, data: Tensor) -> int:
        if self._file is None:
            # unlinked at once: nothing is left behind by a kill
            self._file = tempfile.TemporaryFile(  # noqa: SIM115
                dir=self.folder
            )
        size = data.numel() * data.element_size()
        offset = self._room(size)
        try:
            with self._lock:
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
        if self._ahead is not None:
            found = self._ahead.take(entry)
            if found is not None:
                return found
        return self._load(entry)

    def _load(self, entry: '_Entry') -> Tensor:
        """The tensor on its device; a copy from pinned memory may go on."""
        data = entry.data if entry.data is not None else self._read(entry)
        if data.device != entry.device:
            # moved as it is stored: a CPU would take longer to convert it
            data = data.to(entry.device, non_blocking=True)
        return data.to(entry.dtype)

    def _read(self, entry: '_Entry') -> Tensor:
        # a thread that reads ahead shares the place in the file
        with self._lock:
            flat = np.memmap(
                self._file,
                mode='r',
                dtype=np.uint8,
                offset=entry.offset,
                shape=(entry.size,),
            )
        # a copy: a mapped page is read-only, torch tensors are not
        data = _room_for((entry.size,), torch.uint8, entry.device)
        data.numpy()[:] = flat
        return data.view(entry.stored).view(entry.shape)

    def _release(self, entry: '_Entry') -> None:
        if self._ahead is not None:
            self._ahead.forget(entry)
        if entry.stays:
            self.on_device -= entry.size
            entry.data, entry.stays = None, False
        elif entry.data is not None:
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
        self.stays = False
        self.stored = dtype
        self.offset = 0
        self.size = 0


def _room_for(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Memory of the CPU, pinned if what comes there goes to a GPU."""
    pinned = device.type == 'cuda'
    return torch.empty(shape, dtype=dtype, device='cpu', pin_memory=pinned)


def _copied(data: Tensor) -> Tensor:
    """A copy in memory of the CPU."""
    if data.is_cpu:
        return data.clone()
    return _room_for(tuple(data.shape), data.dtype, data.device).copy_(data)
