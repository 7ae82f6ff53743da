# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The exceptions of the package.

MMEngine re-wraps every ``TypeError`` raised inside a hook and drops its
traceback, so mistakes are reported with types of our own.
"""

import difflib
from collections.abc import Iterable, Mapping


class PTQError(Exception):
    """Base class: a problem the user can act on, told in one message."""


class QuantConfigError(PTQError):
    """A mistake in ``quant_cfg``, found before the first forward."""


class CheckpointError(PTQError):
    """A checkpoint that is missing, corrupt, untrusted or mismatched."""


class CalibrationError(PTQError):
    """Calibration data that cannot be used."""


class MissingDependencyError(PTQError, ImportError):
    """A package that is not there, or of a version that will not do."""


class BudgetError(PTQError):
    """A budget that no choice meets, or of a kind a solver cannot hold."""


class NumericError(PTQError):
    """NaN or Inf in weights or activations; the message names the layer."""


#: What one quantization of several can fail by. Any other error, such as a
#: full disk, would meet the next one too.
FAILURES = (QuantConfigError, CalibrationError, BudgetError, NumericError)


#: Old names of what a ``quant_cfg`` names, and what took their place.
RENAMED = dict(
    InitRanges='the passes Observe, SetRanges and CorrectBias',
    ChooseNorms='the pass ChooseExponents, after Observe and SetRanges',
    norms='exponents',
    keep_rate='drop_prob, the share left float: 1 - keep_rate',
    asymmetric="input_distribution='quantized' (True) or 'float' (False)",
)


def unknown(
    what: str,
    given: object,
    allowed: Iterable[str],
    renamed: Mapping[str, str] | None = None,
) -> str:
    """Builds the message for a name that is not among the allowed ones.

    Args:
        what (str): What the name stands for, e.g. ``'observer'``.
        given (object): The name as the user wrote it.
        allowed (Iterable[str]): Every name that would be accepted.
        renamed (Mapping[str, str], optional): What took the place of old
            names, e.g. :data:`RENAMED`.

    Returns:
        str: A sentence with the nearest match, if any, and all choices.
    """
    names = sorted(set(allowed))
    near = difflib.get_close_matches(str(given), names, n=1, cutoff=0.4)
    hint = f' Did you mean {near[0]!r}?' if near else ''
    if renamed and given in renamed:
        hint = f' It is now {renamed[given]}.'
    return (
        f'unknown {what} {given!r}.{hint} '
        f'Allowed: {", ".join(names) or "none"}.'
    )
