# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Weights of a unit's squared errors."""

import weakref

import pytest
import torch
from reconstruct_model import flat, inside

from mmdet_ptq import registry
from mmdet_ptq.losses import GlobalLoss

pytestmark = pytest.mark.filterwarnings('ignore:no detector adapter')


@pytest.fixture
def marked():
    """A global loss that knows its own targets."""

    class Marked(GlobalLoss):
        def targets(self, outputs):
            return [torch.tensor(7.0)]

        def __call__(self, outputs, targets):
            assert float(targets[0]) == 7
            return sum(t.square().sum() for t in flat(outputs))

    registry.LOSSES.register_module(module=Marked)
    yield dict(type='Marked')
    registry.LOSSES.module_dict.pop('Marked')


def test_fisher_weights_of_a_unit(marked):
    """The gradient by hand, of the quantized detector, for each image."""

    def look(trainer, *_):
        gradients = []
        for j in trainer.images.mine:
            leaves = []

            def cut(_, __, y, leaves=leaves):
                leaves.append(y.detach().requires_grad_())
                return leaves[-1]

            with torch.enable_grad(), trainer.view.watching(cut):
                value = sum(
                    t.square().sum() for t in flat(trainer.images.run(j))
                )
                gradients += torch.autograd.grad(value, leaves)
        squares = [g.double().square() for g in gradients]
        mean = sum(float(s.sum()) for s in squares)
        mean /= sum(s.numel() for s in squares)
        for j, square in zip(trainer.images.mine, squares, strict=True):
            weights = trainer.images.cache.fetch(trainer.samples[j].weights)
            torch.testing.assert_close(
                weights[0], (square / mean).float(), rtol=1e-3, atol=1e-6
            )
            # and it is what the squared errors are multiplied by
            with torch.no_grad():
                (target,) = trainer.images.cache.fetch(
                    trainer.samples[j].targets
                )
                (inputs,) = trainer.images.cache.fetch(
                    trainer.samples[j].inputs
                )
                (y,) = trainer.view(trainer.samples[j].levels[0], inputs)
                local = (weights[0] * (y - target) ** 2).sum(1).mean()
                trainer.whole.clear()
                found = float(trainer.loss(j))
            assert found == pytest.approx(float(local))

    losses = [dict(type='DetectionLoss'), dict(type='FisherLoss', of=marked)]
    inside(look, losses=losses)


@pytest.mark.skipif(
    torch.get_default_device().type != 'cpu',
    reason='the thread of a device lets go of gradients a moment later',
)
def test_gradients_of_one_image_at_a_time(marked, monkeypatch):
    """Those of all images might not fit into memory."""
    original, made = torch.autograd.grad, []

    def grad(*args, **kwargs):
        # that of the image before is still a variable somewhere
        assert not any(g() is not None for one in made[:-1] for g in one)
        found = original(*args, **kwargs)
        made.append([weakref.ref(g) for g in found])
        return found

    monkeypatch.setattr(torch.autograd, 'grad', grad)

    def look(trainer, *_):
        assert len(made) == len(trainer.images.mine) > 2
        made.clear()

    inside(look, only=None, losses=[dict(type='FisherLoss', of=marked)])
