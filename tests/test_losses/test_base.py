# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What a loss is, and that nothing else is taken for one."""

import pytest
import torch

from mmdet_ptq.errors import QuantConfigError
from mmdet_ptq.losses import (
    DetectionLoss,
    FisherLoss,
    GlobalLoss,
    GradientWeighted,
    L2Loss,
    LocalLoss,
    Loss,
    PredictionDifference,
    build_loss,
)
from mmdet_ptq.passes import ChooseExponents
from mmdet_ptq.passes.reconstruct import Reconstruct
from mmdet_ptq.registry import LOSSES


def test_kinds():
    for one in (L2Loss(), FisherLoss()):
        assert isinstance(one, LocalLoss)
    assert isinstance(FisherLoss(), GradientWeighted)
    assert not isinstance(L2Loss(), GradientWeighted)
    for one in (DetectionLoss(), PredictionDifference()):
        assert isinstance(one, GlobalLoss) and not isinstance(one, LocalLoss)


def test_every_registered_loss_is_of_a_kind():
    LOSSES.import_from_location()
    for cls in LOSSES.module_dict.values():
        assert issubclass(cls, LocalLoss) != issubclass(cls, GlobalLoss)


@pytest.mark.parametrize('kind', [Loss, LocalLoss, GradientWeighted])
def test_a_loss_that_computes_nothing_cannot_be_made(kind):
    with pytest.raises(TypeError, match='abstract'):
        kind()


def test_a_global_loss_needs_targets():
    class NoTargets(GlobalLoss):
        def __call__(self, outputs, targets):
            return torch.zeros(())

    with pytest.raises(TypeError, match='targets'):
        NoTargets()


@pytest.fixture
def stranger():
    """Registered, with everything but the base class."""

    class Stranger:
        scope = 'local'

        def __call__(self, outputs, targets, weights):
            return torch.zeros(())

    LOSSES.register_module(module=Stranger)
    yield dict(type='Stranger')
    LOSSES.module_dict.pop('Stranger')


def test_what_is_no_loss_is_refused(stranger):
    says = r'losses\[1\]: Stranger is no Loss.*mmdet_ptq\.losses\.Loss'
    with pytest.raises(QuantConfigError, match=says):
        Reconstruct(
            learn=[dict(type='AdaRound')],
            losses=[dict(type='L2Loss'), stranger],
        )


def test_a_loss_of_another_kind_is_refused():
    local = dict(type='L2Loss')
    with pytest.raises(QuantConfigError, match=r'x: L2Loss is no GlobalLoss'):
        build_loss(local, 'x', GlobalLoss)
    with pytest.raises(QuantConfigError, match='loss: L2Loss is no Global'):
        ChooseExponents(loss=local)
    says = r'losses\[0\]\.of: L2Loss is no GlobalLoss'
    with pytest.raises(QuantConfigError, match=says):
        Reconstruct(
            learn=[dict(type='AdaRound')],
            losses=[dict(type='FisherLoss', of=local)],
        )


@pytest.mark.parametrize(
    ('args', 'says'),
    [
        (dict(type='L2Loss', p=0), 'p must be a number of at least 1'),
        (dict(type='L2Loss', p=float('inf')), 'p must be a number'),
        (dict(type='L2Loss', weight=-1), 'weight must be a number'),
        (dict(type='FisherLoss', damping=1.5), 'damping must.* from 0 to 1'),
        (dict(type='FisherLoss', weight='1'), "weight.*'1'"),
        (dict(type='FisherLoss', form='brec'), "form.*mean 'brecq'"),
    ],
)
def test_bad_arguments_of_local_losses(args, says):
    with pytest.raises(QuantConfigError, match=says):
        build_loss(args, 'x')
