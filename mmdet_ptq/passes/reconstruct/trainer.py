# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The optimisation of one unit."""

import copy
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size
from torch import Tensor

from ...calibration import Images, Replay, Sample, Session, UnitView, mix
from ...context import forward_context
from ...losses import GlobalLoss, LocalLoss
from ...records import UnitRecord
from .learners import Learner

POINTS = 50
"""Steps of the loss curve that go into the result."""

NOTHING = 'it has no learnable part'


class Trainer:
    """Fits the learners of one unit.

    Args:
        settings (Reconstruct): The pass, for its numbers.
        session (Session): The running quantization.
        images (Images): The calibration images.
        view (UnitView): The unit.
        samples (dict[int, Sample]): This rank's samples.
        prefix (Replay, optional): For losses on the detector's outputs.
        losses (list): All losses.
    """

    def __init__(
        self,
        settings: Any,
        session: Session,
        images: Images,
        view: UnitView,
        samples: dict[int, Sample],
        prefix: Replay | None,
        losses: list[Any],
    ) -> None:
        self.settings = settings
        self.session = session
        self.images = images
        self.view = view
        self.samples = samples
        self.prefix = prefix
        self.local = [one for one in losses if isinstance(one, LocalLoss)]
        self.whole = [one for one in losses if isinstance(one, GlobalLoss)]

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
        curve, why = self._learn(learners, acts, train, k)
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

    def _learn(
        self,
        learners: list[Learner],
        acts: list[Any],
        train: list[int],
        k: int,
    ) -> tuple[list[float], str]:
        iters, world = self.settings.iters, get_world_size()
        # codebooks are learnable before rounding looks at their values
        order = sorted(learners, key=lambda one: one.weights)
        groups = []
        for one in order:
            groups += [
                g
                for g in one.start(self.view.layers, acts, iters)
                if g['params']
            ]
        curve: list[float] = []
        why = '' if groups else NOTHING
        if groups:
            optimizer = torch.optim.Adam(groups)
            rates = [group['lr'] for group in optimizer.param_groups]
            batches = draw(
                train,
                self.settings.batch_size * world,
                self.session.config.calibration.seed * 100_003 + k,
            )
            for it in range(iters):
                for group, lr in zip(
                    optimizer.param_groups, rates, strict=True
                ):
                    fall = (1 + math.cos(math.pi * it / iters)) / 2
                    group['lr'] = lr * (fall if group.get('cosine') else 1)
                optimizer.zero_grad(set_to_none=True)
                value = self._step(learners, next(batches), it / iters, k, it)
                if not math.isfinite(value):
                    why = 'the loss became NaN or Inf'
                    break
                _average_gradients(optimizer)
                optimizer.step()
                if it % max(1, iters // POINTS) == 0:
                    curve.append(value)
        # rounding decodes its codes by the fixed codebook
        for one in order:
            one.harden()
        return curve, why

    def _step(
        self,
        learners: list[Learner],
        batch: list[int],
        progress: float,
        k: int,
        it: int,
    ) -> float:
        """Accumulates gradients; returns the mean loss over all ranks."""
        world = get_world_size()
        every = self.settings.global_every
        total = torch.zeros(())
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
                    0 if (it + slot) % every else every,
                )
                loss = loss / len(batch)
                if loss.requires_grad:
                    loss.backward()
                total += loss.detach().cpu()
            penalty = sum(one.penalty(progress) for one in learners)
            if isinstance(penalty, Tensor) and penalty.requires_grad:
                (penalty / world).backward()
        if world > 1:
            all_reduce(total)
        return float(total + float(penalty))

    def loss(
        self,
        j: int,
        drop_prob: float = 0.0,
        generator: torch.Generator | None = None,
        factor: int = 1,
    ) -> Tensor:
        """Sum of all losses on image ``j``, without penalties.

        Args:
            j (int): Number of the image.
            drop_prob (float): Share of the elements that are left float.
            generator (torch.Generator, optional): Draws which.
            factor (int): Of the losses on the detector's outputs; at 0
                nothing after the unit is run.

        Returns:
            Tensor: A scalar.
        """
        fetch = self.images.cache.fetch
        sample = self.samples[j]
        weights = fetch(sample.weights)
        total = torch.zeros((), device=self.session.device)
        whole = self.whole if factor else []
        together = whole and not self.settings.separate_global
        if whole:
            seen: list[Tensor] = []
            outputs = self.replayed(
                j, drop_prob if together else 0.0, generator, seen
            )
            targets = self.images.targets(j)
            for one, target in zip(whole, targets, strict=False):
                total = total + factor * one(outputs, target)
        if not together and self.local:
            seen = []
            with (
                self._dropping(drop_prob, generator),
                forward_context(sample.images),
            ):
                for i, levels in enumerate(sample.levels):
                    inputs = self._inputs(sample, i, drop_prob, generator)
                    seen += self.view(levels, inputs)
        # an image may not call the unit
        for one in self.local if sample.levels else ():
            total = total + one(seen, fetch(sample.targets), weights)
        return total

    def replayed(
        self,
        j: int,
        drop_prob: float = 0.0,
        generator: torch.Generator | None = None,
        seen: list[Tensor] | None = None,
    ) -> Any:
        """Outputs of the detector on image ``j``, from the unit on.

        Args:
            j (int): Number of the image.
            drop_prob (float): Share of the elements that are left float.
            generator (torch.Generator, optional): Draws which.
            seen (list[Tensor], optional): Takes the outputs of the unit.

        Returns:
            Any: Raw outputs, as the adapter gives them.
        """
        sample = self.samples[j]

        def after(_: int, __: Any, output: Any) -> None:
            if seen is not None:
                # copies: what follows may work in place
                seen.extend(t.clone() for t in self.view.finish(output))

        def before(i: int, inputs: Any) -> Any:
            if drop_prob == 0:
                return inputs
            return self._inputs(sample, i, drop_prob, generator)

        with (
            self._dropping(drop_prob, generator),
            self.prefix.replaying(self.images.cache.fetch(sample.replay)),
            self.view.watching(after, before),
        ):
            return self.images.run(j)

    def _inputs(
        self,
        sample: Sample,
        i: int,
        drop_prob: float,
        generator: torch.Generator | None,
    ) -> Any:
        fetch = self.images.cache.fetch
        inputs = fetch(sample.inputs[i])
        if drop_prob == 0:
            return inputs
        return mix(inputs, fetch(sample.exact[i]), drop_prob, generator)

    @contextmanager
    def _dropping(
        self, drop_prob: float, generator: torch.Generator | None
    ) -> Iterator[None]:
        with ExitStack() as stack:
            for layer in self.view.layers.values():
                stack.enter_context(layer.dropping(drop_prob, generator))
            yield

    def split(self) -> tuple[list[int], list[int]]:
        """Numbers of the images to learn from, and of the held-out ones."""
        everyone = self.images.everyone
        share = self.settings.holdout
        if not share or len(everyone) < 2:
            return everyone, everyone
        period = max(2, round(1 / share))
        held = everyone[period - 1 :: period] or everyone[-1:]
        return [j for j in everyone if j not in held], held

    @torch.no_grad()
    def loss_on(self, chosen: list[int]) -> float:
        """Mean loss over images of all ranks, nothing dropped."""
        mine = [j for j in chosen if j in self.samples]
        total = torch.tensor(
            sum(float(self.loss(j)) for j in mine), dtype=torch.float64
        )
        if get_world_size() > 1:
            all_reduce(total)
        return float(total) / len(chosen)


def draw(numbers: list[int], size: int, seed: int) -> Iterator[list[int]]:
    """Endless batches, in which every slot has numbers of its own.

    Slot s takes the numbers that are s modulo ``size``, reshuffled each time
    they are used up. Ranks own numbers modulo the world size, so all get an
    equal share of every batch, the same batches whatever the number of
    ranks.

    Args:
        numbers (list[int]): To draw from.
        size (int): Of a batch; if there are fewer numbers, all of them.
        seed (int): Of the order.

    Yields:
        list[int]: A batch.
    """
    size = min(size, len(numbers))
    slots = [[j for j in numbers if j % size == s] for s in range(size)]
    if not all(slots):
        slots = [numbers[s::size] for s in range(size)]
    generator = torch.Generator().manual_seed(seed)
    queues: list[list[int]] = [[] for _ in slots]
    while True:
        for queue, slot in zip(queues, slots, strict=True):
            if not queue:
                order = torch.randperm(len(slot), generator=generator)
                queue += [slot[i] for i in order]
        yield [queue.pop() for queue in queues]


def _average_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Adds the ranks' gradients; each has divided by the whole batch."""
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
