# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Random numbers where tests make their tensors."""

import torch


def seeded(seed):
    """A generator of the device of ``--device``."""
    return torch.Generator(torch.get_default_device()).manual_seed(seed)


def drawn(draw):
    """What a function draws, on every device the same numbers.

    Args:
        draw (Callable): Without arguments; makes a tensor, on the CPU.
    """
    device = torch.get_default_device()
    with torch.device('cpu'):
        return draw().to(device)
