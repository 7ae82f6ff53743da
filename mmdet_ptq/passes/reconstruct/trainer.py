# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The optimisation of one unit."""

import copy
import math
from itertools import takewhile
from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size
from torch import Tensor

from ...calibration import UnitView
from ...records import UnitRecord
from .batches import draw
from .learners import Learner
from .unit_loss import UnitLoss

POINTS = 50
"""Steps of the loss curve that go into the result."""

LOOK = 100
"""Steps after which a GPU is asked what the losses were."""

NOTHING = 'it has no learnable part'


class Trainer(UnitLoss):
    """Fits the learners of one unit; arguments are those of its base."""

    def fit(
        self, learners: list[Learner], acts: list[Any], k: int
    ) -> UnitRecord:
        """Learns, hardens, and puts the unit back if it got worse.

        Args:
            learners (list[Learner]): What is learned.
            acts (list): Activation quantizers that this unit may change.
            k (int): Number of the unit, for the seed.

        Returns:
            UnitRecord: Held-out losses, losses of some steps, and why it
            was put back if it was.
        """
        train, held = self.split()
        before = self.loss_on(held)
        saved = _snapshot(self.view, acts)
        curve, why = self.learn(learners, acts, train, k)
        after = self.loss_on(held) if not why else math.nan
        if not why and not math.isfinite(after):
            why = 'the loss became NaN or Inf'
        if not why and self.settings.revert and not after < before:
            why = 'the held-out loss did not fall'
        if why:
            _put_back(saved)
            did = 'left as it was' if why == NOTHING else 'put back'
            self.session.notes.append(f'{self.view.name}: {did}, {why}')
        return UnitRecord(
            unit=self.view.name,
            before=before,
            after=after if math.isfinite(after) else None,
            kept=not why,
            why=why,
            curve=curve,
        )

    def learn(
        self,
        learners: list[Learner],
        acts: list[Any],
        train: list[int],
        k: int,
    ) -> tuple[list[float], str]:
        """Optimises and hardens.

        Args:
            learners (list[Learner]): What is learned.
            acts (list): Activation quantizers that this unit may change.
            train (list[int]): Numbers of the images to learn from.
            k (int): Number of the unit, for the seed.

        Returns:
            tuple[list[float], str]: Losses of some steps, and why learning
            failed, else ''.
        """
        iters = self.settings.iters
        # codebooks are learnable before rounding looks at their values
        order = sorted(learners, key=lambda one: one.weights)
        groups = [
            group
            for one in order
            for group in one.start(self.view.layers, acts, iters)
            if group['params']
        ]
        curve, why = [], NOTHING
        if groups:
            curve, why = self._optimise(groups, learners, train, k)
        # rounding decodes its codes by the fixed codebook
        for one in order:
            one.harden()
        return curve, why

    def _optimise(
        self,
        groups: list[dict],
        learners: list[Learner],
        train: list[int],
        k: int,
    ) -> tuple[list[float], str]:
        """Runs Adam; see :meth:`learn`.

        A loss that is no number may be noticed some steps later: what these
        have learned is dropped, as are their losses.
        """
        iters = self.settings.iters
        look = look_after(self.session.device)
        # in one kernel a group; on a CPU it would round otherwise
        fused = True if self.session.device.type == 'cuda' else None
        optimizer = torch.optim.Adam(groups, fused=fused)
        rates = [group['lr'] for group in optimizer.param_groups]
        batches = draw(
            train,
            self.settings.batch_size * get_world_size(),
            self.session.config.calibration.seed * 100_003 + k,
        )
        batch = next(batches)
        first = [p.detach().clone() for g in groups for p in g['params']]
        values: list[Tensor] = []
        found: list[float] = []
        for it in range(iters):
            self.on_step(it)
            fall = (1 + math.cos(math.pi * it / iters)) / 2
            for group, lr in zip(optimizer.param_groups, rates, strict=True):
                group['lr'] = lr * (fall if group.get('cosine') else 1)
            optimizer.zero_grad(set_to_none=True)
            # brought to the device while this step runs
            coming = next(batches) if it < iters - 1 else []
            self.prefetch(coming, it + 1)
            values.append(self.step(learners, batch, it / iters, k, it))
            batch = coming
            if len(values) == look or it == iters - 1:
                found += torch.stack(values).tolist()
                values = []
            if not all(map(math.isfinite, found[-look:])):
                # what is learned may be NaN; the unit will be put back
                learned = (p for g in groups for p in g['params'])
                for p, start in zip(learned, first, strict=True):
                    p.data.copy_(start)
                return _curve(found, iters), 'the loss became NaN or Inf'
            average_gradients(optimizer)
            optimizer.step()
        return _curve(found, iters), ''

    def step(
        self,
        learners: list[Learner],
        batch: list[int],
        progress: float,
        k: int,
        it: int,
    ) -> Tensor:
        """Accumulates the gradients of one step.

        Args:
            learners (list[Learner]): What is learned.
            batch (list[int]): Numbers of the images, of all ranks.
            progress (float): Share of the steps that is done.
            k (int): Number of the unit.
            it (int): Number of the step.

        Returns:
            Tensor: The mean loss over all ranks, a scalar on the device of
            the model.
        """
        world = get_world_size()
        total = torch.zeros((), device=self.session.device)
        with torch.enable_grad():
            for slot, j in enumerate(batch):
                if j not in self.samples:
                    continue
                # the mask of an image does not depend on the rank it is on
                generator = self.session.rng(k, it, j)
                loss = self.loss(
                    j,
                    self.settings.drop_prob,
                    generator,
                    self.factor(it, slot),
                )
                loss = loss / len(batch)
                if loss.requires_grad:
                    loss.backward()
                total += loss.detach()
            penalty = sum(one.penalty(progress) for one in learners)
            if isinstance(penalty, Tensor):
                if penalty.requires_grad:
                    (penalty / world).backward()
                penalty = penalty.detach()
        if world > 1:
            all_reduce(total)
        return total + penalty

    def factor(self, it: int, slot: int) -> int:
        """Of the losses on the detector's outputs; slots take turns."""
        every = self.settings.global_every
        return 0 if (it + slot) % every else every

    def prefetch(self, batch: list[int], it: int) -> None:
        """Has a batch brought to the device.

        Args:
            batch (list[int]): Numbers of the images, of all ranks.
            it (int): Number of the step that it is for.
        """
        self.images.cache.prefetch(
            [
                self.entries(j, self.settings.drop_prob, self.factor(it, slot))
                for slot, j in enumerate(batch)
                if j in self.samples
            ]
        )

    def split(self) -> tuple[list[int], list[int]]:
        """Numbers of the images to learn from, and of the held-out ones.

        Images that do not reach the unit are neither.
        """
        everyone = self.reached
        share = self.settings.holdout
        if not share or len(everyone) < 2:
            return everyone, everyone
        period = max(2, round(1 / share))
        held = everyone[period - 1 :: period] or everyone[-1:]
        return [j for j in everyone if j not in held], held


def look_after(device: torch.device) -> int:
    """Steps after which the losses are looked at.

    To be asked makes a GPU wait for the next step; a CPU has the answer.
    """
    return 1 if device.type == 'cpu' else LOOK


def _curve(values: list[float], iters: int) -> list[float]:
    """Losses of some steps, up to the first that is no number."""
    finite = list(takewhile(math.isfinite, values))
    return finite[:: max(1, iters // POINTS)]


def average_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Adds the ranks' gradients; each has divided by the whole batch.

    Args:
        optimizer (torch.optim.Optimizer): Changed in place.
    """
    for group in optimizer.param_groups:
        for parameter in group['params']:
            # also alone: Adam moves on by its momentum where a gradient is
            # zero, and stands still where there is none
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if get_world_size() > 1:
                all_reduce(parameter.grad)
            if group.get('clip'):
                torch.nn.utils.clip_grad_norm_([parameter], group['clip'])


def _snapshot(view: UnitView, acts: list[Any]) -> Any:
    """What :func:`_put_back` needs to undo a unit."""
    return (
        [(m, m.snapshot()) for m in view.layers.values()],
        [(q, copy.deepcopy(q.state_dict())) for q in acts],
    )


def _put_back(saved: Any) -> None:
    """Restores a unit, after the learners have hardened."""
    layers, quantizers = saved
    for layer, snapshot in layers:
        layer.restore(snapshot)
    for quantizer, state in quantizers:
        quantizer.load_state_dict(state)
