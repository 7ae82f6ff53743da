# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""PD-Quant's correction of the inputs that a unit is fitted to."""

from collections.abc import Callable
from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ...calibration import ActivationCache, Sample, Session, UnitView
from ...checks import number, whole
from ...context import forward_context
from ...errors import unknown
from ...layers import float_mode
from ...losses import mean_over_positions
from .norm_statistics import NormStatistics, norms_of, watching

#: steps that may bring nothing before the rate falls
PATIENCE = 100


class DistributionCorrection:
    """Moves float inputs towards what the unit's batch norms expect.

    PD-Quant (Liu et al., 2023, section 3.3): few calibration images have
    other statistics than the training set; batch norms have stored those.
    For each call of the unit on each image that is learned from, an x' is
    learned by Adam, starting from the float input x, that lessens::

        sum over norms of (|mean(z) - mu|^2 + |std(z) - sigma|^2) / B
            + L2(x', x) / lambda_c

    z being the norm's input, means and deviations those of each image, and
    L2 a mean over positions of the sum over channels. The rate falls to a
    tenth, down to 1e-5, each time 100 steps brought nothing. x' then stands
    for x wherever that would be mixed in, and the float unit's output on
    x' is the target. An x' that did not get better is dropped.

    The published code corrects 32 images at once. Images here differ in
    size, so each is corrected by itself; as Adam does not see the scale of
    a loss, the difference is that each has its own fall of the rate.

    Held-out images are not corrected: whether a unit got better is judged
    by what the detector computes.

    Args:
        iters (int): Steps for each image. Defaults to 500.
        lr (float): Rate, in units of the activations. Defaults to 1e-3.
        lambda_c (float): Divides the distance to x. The paper has 0.02 for
            ResNet, 0.01 for RegNet, 0.005 for MobileNetV2 and 0.001 for
            MNasNet. Defaults to 0.02.

    Raises:
        ValueError: If an argument is not among the allowed values.
    """

    def __init__(
        self, iters: int = 500, lr: float = 1e-3, lambda_c: float = 0.02
    ) -> None:
        where = 'distribution_correction: '
        self.iters = whole(f'{where}iters', iters, 1)
        self.lr = number(f'{where}lr', lr, above=True)
        self.lambda_c = number(f'{where}lambda_c', lambda_c, above=True)

    @classmethod
    def of(cls, cfg: Any) -> 'DistributionCorrection':
        """From the argument of the pass.

        Raises:
            ValueError: If it is no dict of arguments.
        """
        where, allowed = 'distribution_correction', ['iters', 'lr', 'lambda_c']
        if not isinstance(cfg, dict):
            raise ValueError(f'{where}: expected a dict, got {cfg!r}')
        for key in cfg:
            if key not in allowed:
                raise ValueError(
                    f'{where}: ' + unknown('argument', key, allowed)
                )
        return cls(**cfg)

    def __call__(
        self,
        session: Session,
        cache: ActivationCache,
        view: UnitView,
        samples: dict[int, Sample],
    ) -> list[float] | None:
        """Replaces ``exact`` and ``targets`` of samples in the cache.

        Args:
            session (Session): The running quantization.
            cache (ActivationCache): Holds the samples.
            view (UnitView): The unit.
            samples (dict[int, Sample]): Those to correct, of this rank.

        Returns:
            list[float] | None: Mean loss before and after, over all ranks;
            None if the unit has no batch norm.
        """
        norms = norms_of(session, view)
        if not norms:
            return None
        sums = torch.zeros(3, dtype=torch.float64)
        with float_mode(session.model):
            for sample in samples.values():
                exact = cache.fetch(sample.exact)
                corrected, outputs = [], []
                for levels, x in zip(sample.levels, exact, strict=True):
                    with forward_context(sample.images):
                        found, y, before, after = self.correct(
                            view, norms, levels, x
                        )
                    corrected.append(found)
                    outputs += y
                    sums += torch.tensor([before, after, 1])
                # where all inputs are float, these are the same entries
                if sample.exact is not sample.inputs:
                    cache.drop(sample.exact)
                cache.drop(sample.targets)
                sample.exact = cache.keep(corrected)
                sample.targets = cache.keep(outputs)
        if get_world_size() > 1:
            all_reduce(sums)
        before, after, count = sums.tolist()
        return [before / max(1, count), after / max(1, count)]

    def correct(
        self,
        view: UnitView,
        norms: list[tuple[nn.Module, NormStatistics]],
        levels: dict[str, int],
        inputs: Any,
    ) -> tuple[Any, list[Tensor], float, float]:
        """One call of a unit, which has to be float.

        Args:
            view (UnitView): The unit.
            norms (list): From :func:`norms_of`.
            levels (dict[str, int]): ``Call.levels``.
            inputs (Any): x, the ``(args, kwargs)`` of the call.

        Returns:
            tuple[Any, list[Tensor], float, float]: x', what the unit makes
            of it, and the loss of x and of x'; x itself if it is no worse.
        """
        leaves, spec = tree_flatten(inputs)
        places = [i for i, leaf in enumerate(leaves) if _is_map(leaf)]
        exact = [leaves[i] for i in places]

        def loss(found: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
            tree, errors = list(leaves), []
            for i, t in zip(places, found, strict=True):
                tree[i] = t.clone()  # what follows may work in place
            with watching(norms, errors):
                outputs = view(levels, tree_unflatten(tree, spec))
            pairs = zip(found, exact, strict=True)
            parts = [(a - b).square() for a, b in pairs]
            distance = mean_over_positions(parts) / self.lambda_c
            return sum(errors, distance), outputs

        if not places:
            return inputs, view(levels, inputs), 0.0, 0.0
        with torch.no_grad():
            value, outputs = loss(exact)
        before = float(value)
        if not before > 0:
            return inputs, outputs, before, before
        found = self._descend(exact, loss)
        with torch.no_grad():
            value, corrected = loss(found)
        after = float(value)
        if not after < before:  # nor if it is NaN
            return inputs, outputs, before, before
        for i, t in zip(places, found, strict=True):
            leaves[i] = t
        return tree_unflatten(leaves, spec), corrected, before, after

    def _descend(
        self,
        exact: list[Tensor],
        loss: Callable[[list[Tensor]], tuple[Tensor, list[Tensor]]],
    ) -> list[Tensor]:
        """Maps of less loss, as the steps from the exact ones leave them.

        The rate cannot fall before as many steps brought nothing as the
        patience has, so the losses are looked at when it could at the
        earliest: the rates are those of a look at each step, for which a
        GPU would have to wait.
        """
        found = [t.detach().clone().requires_grad_() for t in exact]
        optimizer = torch.optim.Adam(found, lr=self.lr)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, patience=PATIENCE, min_lr=1e-5
        )
        losses: list[Tensor] = []
        for _ in range(self.iters):
            optimizer.zero_grad(set_to_none=True)
            with torch.enable_grad():
                value, _ = loss(found)
                value.backward()
            optimizer.step()
            losses.append(value.detach())
            if schedule.num_bad_epochs + len(losses) > PATIENCE:
                for one in torch.stack(losses).tolist():
                    schedule.step(one)
                losses = []
        return [t.detach() for t in found]


def _is_map(leaf: Any) -> bool:
    return (
        isinstance(leaf, Tensor)
        and leaf.is_floating_point()
        and leaf.dim() > 1
    )
