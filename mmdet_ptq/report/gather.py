# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What a report needs of a run and the result file does not have."""

from collections.abc import Callable, Sequence
from typing import Any

from .accuracy import accuracy
from .changes import changes
from .examples import examples
from .predictions import ImageRow

Rows = Sequence[ImageRow] | None
"""Predictions of one test, None where they are not known"""


def gathered(
    before: Rows,
    after: Rows,
    classes: Sequence[str],
    layers: dict[str, Any] | None,
    why: dict[str, str],
) -> tuple[dict[str, Any], list[str]]:
    """The parts of a report as plain types.

    Args:
        before (Sequence[ImageRow], optional): Of the float detector.
        after (Sequence[ImageRow], optional): Of the quantized one.
        classes (Sequence[str]): Names by label.
        layers (dict, optional): Of :func:`layer_table`.
        why (dict[str, str]): Why ``float``, ``quantized`` or ``layers`` are
            not known.

    Returns:
        tuple[dict[str, Any], list[str]]: ``accuracy``, ``changes``,
        ``examples``, ``layers``, None where there is nothing to say, and
        ``why`` for each of those. Then sentences on parts that failed: each
        costs no other.
    """
    reasons, problems = {}, []
    if layers is None:
        reasons['layers'] = why.get('layers', 'layers were not compared')
    found: dict[str, Any] = dict(layers=layers)
    for key, make, lacking in (
        ('accuracy', accuracy, _no_accuracy(after, why)),
        ('changes', changes, _no_changes(before, after, why)),
        ('examples', examples, _no_examples(before, after, why)),
    ):
        found[key] = None
        if not lacking:
            found[key], lacking = _made(make, before, after, classes)
            if lacking:
                problems.append(f'{key}: {lacking}')
        if lacking:
            reasons[key] = lacking
    return dict(found, why=reasons), problems


def _made(
    make: Callable, before: Rows, after: Rows, classes: Sequence[str]
) -> tuple[Any, str]:
    """What a function makes of the predictions, or why it does not."""
    try:
        return make(before, after, classes), ''
    except Exception as error:
        # at the end of a run: what was computed is worth more than a chart
        return None, f'this could not be made: {type(error).__name__}: {error}'


def _known(rows: Rows) -> bool:
    """Whether there are predictions and objects."""
    return any(r.truth is not None and len(r.truth) for r in rows or ())


def _no_accuracy(after: Rows, why: dict[str, str]) -> str:
    if after is None:
        return why.get('quantized', 'there are no predictions')
    if not _known(after):
        return (
            'the test pipeline loads no objects (LoadAnnotations), so AP '
            'could not be taken apart'
        )
    return ''


def _no_changes(before: Rows, after: Rows, why: dict[str, str]) -> str:
    if after is None:
        return why.get('quantized', 'there are no predictions')
    if before is None:
        return why.get('float', 'the float detector was not tested')
    return ''


def _no_examples(before: Rows, after: Rows, why: dict[str, str]) -> str:
    if after is None or not after:
        return why.get('quantized', 'there are no predictions')
    if before is None and not _known(after):
        return (
            'there are neither predictions of the float detector nor objects '
            'to compare with'
        )
    return ''
