# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Metrics, of whatever type an evaluator gives."""

from typing import Any

import numpy as np
import torch


def plain_metrics(value: Any) -> Any:
    """Metrics in types that JSON has.

    Args:
        value (Any): Dicts, lists and tuples of plain types, and of numbers,
            arrays and tensors of NumPy and PyTorch. Of anything else its
            text is kept.

    Returns:
        Any: Dicts with names, lists, numbers, texts, bools and None.
    """
    if value is None or isinstance(value, bool | int | float | str):
        # a number of NumPy may be a float as well
        return value.item() if isinstance(value, np.generic) else value
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        return plain_metrics(value.tolist())
    if isinstance(value, dict):
        return {str(k): plain_metrics(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain_metrics(v) for v in value]
    return str(value)


def row_of(
    name: str, before: Any, after: Any, digits: int
) -> tuple[str, str, str, str] | None:
    """A row of the table of metrics.

    Args:
        name (str): Of the metric.
        before (Any): Of the float detector, as :func:`plain_metrics` gives
            it.
        after (Any): Of the quantized one.
        digits (int): Behind the point.

    Returns:
        tuple[str, str, str, str], optional: Name, both, and the difference.
        None if it is no number.
    """
    if not _number(after):
        return None
    if not _number(before):
        return name, '-', f'{after:.{digits}f}', '-'
    return (
        name,
        f'{before:.{digits}f}',
        f'{after:.{digits}f}',
        f'{after - before:+.{digits}f}',
    )


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
