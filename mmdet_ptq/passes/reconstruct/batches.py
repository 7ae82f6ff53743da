# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Batches of image numbers, the same whatever the number of ranks."""

from collections.abc import Iterator

import torch


def draw(numbers: list[int], size: int, seed: int) -> Iterator[list[int]]:
    """Endless batches, in which every slot has numbers of its own.

    Slot s takes the numbers that are s modulo ``size``, reshuffled each time
    they are used up. Ranks own numbers modulo the world size, so all get an
    equal share of every batch, the same batches whatever the number of
    ranks.

    Args:
        numbers (list[int]): To draw from.
        size (int): Of a batch; if there are fewer numbers, all of them.
        seed (int): Of the order.

    Yields:
        list[int]: A batch.
    """
    size = min(size, len(numbers))
    slots = [[j for j in numbers if j % size == s] for s in range(size)]
    if not all(slots):
        slots = [numbers[s::size] for s in range(size)]
    generator = torch.Generator('cpu').manual_seed(seed)
    queues: list[list[int]] = [[] for _ in slots]
    while True:
        for queue, slot in zip(queues, slots, strict=True):
            if not queue:
                order = torch.randperm(
                    len(slot), generator=generator, device='cpu'
                )
                queue += [slot[i] for i in order]
        yield [queue.pop() for queue in queues]
