# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What a test of a detector gave."""

import torch


def same(a, b):
    """Whether two results are equal to the bit, tensors included."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def measured(metrics):
    return {k: v for k, v in metrics.items() if k.startswith('coco/')}
