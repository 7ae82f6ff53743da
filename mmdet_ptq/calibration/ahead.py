# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Tensors that are brought to a device before they are asked for."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

Load = Callable[[], Tensor]
"""Gives a tensor on the device; may return before its copy has ended."""


class Ahead:
    """Loads tensors in a thread, on a GPU beside what it computes.

    There are two sets, those of this step and those of the next. What is
    asked for in a step was ordered in the step before. A tensor that nobody
    asked for goes when the second order after its own comes.

    Args:
        device (torch.device): Where tensors are wanted. On a GPU they are
            copied by a stream of their own.
    """

    def __init__(self, device: torch.device) -> None:
        cuda = device.type == 'cuda'
        self._stream = torch.cuda.Stream(device) if cuda else None
        self._pool = ThreadPoolExecutor(1, 'mmdet_ptq-ahead')
        self._now: dict[Any, Future] = {}
        self._next: dict[Any, Future] = {}

    def order(self, loads: dict[Any, Load]) -> None:
        """Begins to load what the next step will ask for.

        Args:
            loads (dict[int, Callable]): By keys of one's own choice.
        """
        self._now = self._next
        self._next = {
            key: self._now.get(key) or self._pool.submit(self._load, load)
            for key, load in loads.items()
        }

    def take(self, key: Any) -> Tensor | None:
        """What was ordered under a key, None if nothing was.

        The stream that asks waits for the copy, the CPU does not.
        """
        ordered = self._now.get(key) or self._next.get(key)
        if ordered is None:
            return None
        tensor, copied = ordered.result()
        if copied is not None:
            stream = torch.cuda.current_stream(tensor.device)
            stream.wait_event(copied)
            # its room is free again when this stream is done with it
            tensor.record_stream(stream)
        return tensor

    def forget(self, key: Any) -> None:
        """Drops an order; waits for it, as its source may go next."""
        for orders in (self._now, self._next):
            ordered = orders.pop(key, None)
            if ordered is not None:
                ordered.exception()

    def close(self) -> None:
        """Drops all orders and ends the thread."""
        self._now, self._next = {}, {}
        self._pool.shutdown(cancel_futures=True)

    def _load(self, load: Load) -> tuple[Tensor, Any]:
        if self._stream is None:
            return load(), None
        with torch.cuda.stream(self._stream):
            tensor = load()
            return tensor, self._stream.record_event()


def ahead_of(device: torch.device) -> Ahead | None:
    """A loader for a GPU; None for a CPU, where nothing is copied."""
    return Ahead(device) if device.type == 'cuda' else None
