# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Arguments of a reconstruction that speak against each other."""

from typing import Any

from ...losses import GlobalLoss, GradientWeighted, LocalLoss, build_loss
from ...registry import LEARNERS, build_from
from .learners import Learner


def check_settings(settings: Any) -> None:
    """Builds learners and losses as a trial.

    Args:
        settings (Reconstruct): The pass, its own numbers already checked.

    Raises:
        ValueError: Says which arguments do not go together.
        QuantConfigError: On an unknown learner or loss.
    """
    if settings.correction is not None:
        _need(
            settings.drop_prob > 0,
            'distribution_correction needs drop_prob above 0: only the '
            'float part of the mixed inputs is corrected',
        )
    _check_learners(settings)
    _check_losses(settings)


def _check_learners(settings: Any) -> None:
    built = [
        build_from(LEARNERS, cfg, f'Reconstruct.learn[{i}]')
        for i, cfg in enumerate(settings.learn)
    ]
    _need(bool(built), 'learn is empty: nothing would be learned')
    for one in built:
        _need(
            isinstance(one, Learner),
            f'learn: {type(one).__name__} is registered as a learner but does '
            'not inherit from Learner',
        )
    _need(
        sum(one.weights for one in built) <= 1,
        'learn has two learners of weights; use one',
    )


def _check_losses(settings: Any) -> None:
    losses = [
        build_loss(cfg, f'Reconstruct.losses[{i}]')
        for i, cfg in enumerate(settings.losses)
    ]
    _need(bool(losses), 'losses is empty: nothing would be compared')
    weighted = [
        (i, loss)
        for i, loss in enumerate(losses)
        if isinstance(loss, GradientWeighted)
    ]
    for i, loss in weighted:
        loss.build_of(f'Reconstruct.losses[{i}]')
    _need(
        len(weighted) <= 1,
        'losses has two that take weights from a gradient; use one',
    )
    _need(
        settings.global_every == 1
        or any(isinstance(one, LocalLoss) for one in losses),
        f'global_every={settings.global_every} leaves images without a loss: '
        "add one on the units' outputs, e.g. dict(type='L2Loss')",
    )
    early = not weighted and not any(
        isinstance(one, GlobalLoss) for one in losses
    )
    _need(
        settings.autocast is None or not early,
        f"autocast='{settings.autocast}' needs a loss on the detector's "
        "outputs, e.g. dict(type='DetectionLoss'): without one nothing after "
        'the unit is run',
    )
    _need(
        settings.order == 'sequential'
        or (settings.input_distribution == 'float' and early),
        "order='parallel' needs input_distribution='float', and losses on "
        "the units' outputs that need no gradient, e.g. "
        "dict(type='L2Loss')",
    )


def _need(ok: bool, message: str) -> None:
    if not ok:
        raise ValueError(message)
