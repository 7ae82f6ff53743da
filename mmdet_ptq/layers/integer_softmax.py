# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""A softmax whose exponential knows whole numbers alone."""

import math

import torch
from torch import Tensor

#: octaves below the largest that an exponential reaches
OCTAVES = 30
#: ``exp(r)`` is about ``A r^2 + B r + 1`` on (-ln 2, 0]
A, B = 0.35815147, 0.96963238


def integer_softmax(p: Tensor, steps: int) -> Tensor:
    """A softmax as FQ-ViT computes it (Lin et al., 2022, section 3.3).

    Logits are whole numbers x of steps of ``ln 2 / steps``, counted from the
    largest of the row. With ``x = r - q steps`` their exponential is a
    polynomial of r in whole numbers, shifted by q places. The paper takes
    the step from the range of the logits alone; here a whole number of steps
    makes an octave, so that what is shifted is the whole exponent.

    Logits are read off the float softmax, ``l - max l = ln(p / max p)``.

    Args:
        p (Tensor): A softmax over its last axis, of any float type.
        steps (int): Steps of an octave, at least 1.

    Returns:
        Tensor: Like ``p``. Its rows add up to 1; 0 stays 0; rows of zeros
        stay. Its gradient is that of ``p``.
    """
    fine = p.detach().double()
    peak = fine.amax(-1, keepdim=True)
    step = math.log(2) / steps
    x = (fine / peak).log_().div_(step).round_()
    x = x.clamp_(min=-OCTAVES * steps)
    q = x.div(-steps).floor_()
    r = x.add_(q * steps)
    linear, constant = int(B / A / step), int(1 / A / step**2)
    whole = (r + linear).mul_(r).add_(constant)
    exponential = whole.mul_(torch.exp2(OCTAVES - q)).floor_()
    exponential = torch.where(fine > 0, exponential, 0.0)
    total = exponential.sum(-1, keepdim=True).clamp_(min=1)
    found = (exponential / total).to(p.dtype)
    if p.requires_grad and torch.is_grad_enabled():
        return p + (found - p).detach()
    return found
