# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Ranges chosen by what they do to the detector's outputs."""

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import torch
from mmengine.dist import all_reduce, get_world_size
from torch import Tensor

from ..calibration import Images, Prefix, Session, frozen, room_for_outputs
from ..checks import number, whole
from ..detectors import adapter_for, why_no_outputs
from ..errors import QuantConfigError
from ..layers import quantizing
from ..losses import GlobalLoss, build_loss
from ..observers import LpObserver, search_weight_range, set_range
from ..quantizers import FitsTensor
from ..registry import OBSERVERS, build_from
from .base import BasePass
from .observe import Observe

TASK_LOSS = dict(type='DetectionLoss')


class TaskLoss:
    """The loss of the detector with some layers quantized.

    Args:
        session (Session): The running quantization.
        images (Images): What the loss is taken on.
        loss (GlobalLoss): A loss on the detector's outputs, not negative.
        prefix (Prefix): Keeps what did not change, for the next call.

    Attributes:
        values (list[float]): Losses of this rank's images in the latest
            call, in order; fewer if it was stopped.
    """

    def __init__(
        self,
        session: Session,
        images: Images,
        loss: GlobalLoss,
        prefix: Prefix,
    ) -> None:
        self.session = session
        self.images = images
        self.loss = loss
        self.prefix = prefix
        self.values: list[float] = []
        self._layers: set[str] = set()
        self._twins = session.layers

    @torch.no_grad()
    def __call__(
        self,
        layers: set[str],
        changed: set[str] | None = None,
        best: Sequence[float] = (),
    ) -> float:
        """Mean loss over the images of all ranks; NaN counts as Inf.

        Args:
            layers (set[str]): Layers that are quantized.
            changed (set[str], optional): Layers that have another weight or
                other ranges than in the latest call. None: any may.
            best (Sequence[float]): :attr:`values` of a call that the loss is
                compared with. A call that is seen to have more may stop,
                and then estimates its loss from the images so far.
        """
        self.prefix.change(
            set(self._twins)
            if changed is None
            else changed | (layers ^ self._layers)
        )
        self._layers = set(layers)
        stop = self._limit(best)
        found: list[Tensor] = []
        with quantizing(self._twins, layers, layers):
            for j in self.images.mine:
                found.append(self._of_image(j))
                if stop < math.inf and float(sum(found)) > stop:
                    break
        self.values = torch.stack(found).tolist() if found else []
        return self._mean(best)

    def _limit(self, best: Sequence[float]) -> float:
        """Sum of losses at which a call stops.

        After each image a GPU would have to be waited for, which costs more
        than is saved: a loss that is a little worse shows with the last
        images. Ranks would have to ask each other.
        """
        alone = self.session.device.type == 'cpu' and get_world_size() == 1
        return sum(best) if best and alone else math.inf

    def _of_image(self, j: int) -> Tensor:
        """Loss of one image, float64."""
        outputs = self.prefix.run(j, lambda: self.images.run(j))
        return self.loss(outputs, self.images.targets(j)[0]).double()

    def _mean(self, best: Sequence[float]) -> float:
        total = sum(self.values)
        if len(self.values) < len(best):
            part = sum(best[: len(self.values)])
            # what is above the whole is above any part of it
            total *= sum(best) / part if part else 1.0
        if get_world_size() > 1:
            of_ranks = torch.tensor(total, dtype=torch.float64)
            all_reduce(of_ranks)
            total = float(of_ranks)
        mean = total / len(self.images.everyone)
        return mean if math.isfinite(mean) else math.inf


class TaskPass(BasePass):
    """Base of passes that change ranges by a loss on the outputs.

    Args:
        images (int): How many calibration images the loss is taken on, of
            each rank. Defaults to 8.
        loss (dict): Loss on the detector's outputs. Defaults to
            ``dict(type='DetectionLoss')``.

    Raises:
        ValueError: If ``images`` is not a whole number of at least 1.
    """

    needs: ClassVar[frozenset[str]] = frozenset({'observers', 'ranges'})
    gives: ClassVar[frozenset[str]] = frozenset({'chosen'})
    refuses: ClassVar[frozenset[str]] = frozenset(
        {'chosen', 'corrected', 'learned', 'noisy'}
    )

    def __init__(self, images: int = 8, loss: dict = TASK_LOSS) -> None:
        self.images = whole('images', images, 1)
        self.loss = loss
        build_loss(self.loss, f'{type(self).__name__}.loss', GlobalLoss)

    def check(self, earlier: Sequence[BasePass]) -> None:
        """See :meth:`BasePass.check`; an exponent needs an Lp search."""
        super().check(earlier)
        for one in earlier:
            if not isinstance(one, Observe):
                continue
            if not isinstance(build_from(OBSERVERS, one.observer), LpObserver):
                raise QuantConfigError(
                    f'passes: {type(self).__name__} needs Observe with an '
                    "'LpObserver': its exponent is what is chosen; got "
                    f'{one.observer["type"]!r}'
                )

    def prepare(self, session: Session) -> None:
        """See :meth:`BasePass.prepare`; the loss needs outputs."""
        why = why_no_outputs(session.model, session.graph)
        if why:
            raise QuantConfigError(
                f"{type(self).__name__}: its loss compares the detector's "
                f'outputs, but {why}; register an adapter (see '
                'mmdet_ptq.detectors.Adapter), or leave this pass out'
            )

    def run(self, session: Session) -> None:
        """See :meth:`BasePass.run`; float outputs are the target."""
        with session.stage('task ranges'), self._task(session) as task:
            self.choose(session, task)

    @abstractmethod
    def choose(self, session: Session, task: TaskLoss) -> None:
        """What a method does; ``task(layers)`` is the loss."""

    @contextmanager
    def _task(self, session: Session) -> Iterator[TaskLoss]:
        loss = build_loss(self.loss, type(self).__name__, GlobalLoss)
        with session.cache() as cache, frozen(session.model):
            adapter = adapter_for(session.model, session.graph, True)
            images = Images(session, cache, adapter, [loss], limit=self.images)
            room = room_for_outputs(
                cache.limit - cache.in_memory, session.device
            )
            prefix = Prefix(session.layers, room)
            with prefix.watching():
                yield TaskLoss(session, images, loss, prefix)


def set_exponent(
    session: Session,
    layers: Sequence[str],
    p: float,
    fixed: frozenset[int] | set[int] = frozenset(),
) -> set[str]:
    """Ranges of least Lp error for weights and inputs of some layers.

    Args:
        session (Session): The running quantization.
        layers (Sequence[str]): Names of the layers.
        p (float): Exponent.
        fixed (set[int]): Ids of activation quantizers to leave alone.

    Returns:
        set[str]: These layers, and others that share a quantizer with them.
    """
    twins = session.layers
    for name in layers:
        layer = twins[name]
        quantizer = layer.weight_quantizer
        # what is fitted to the weight itself has no exponent
        if quantizer is not None and not isinstance(quantizer, FitsTensor):
            layer.forget_rounding()
            quantizer.set_range(
                *search_weight_range(layer.weight, quantizer, p=p)
            )
    chosen = set(layers)
    changed = set(layers)
    for group in session.plan.groups:
        name, port = group[0]
        quantizer = twins[name].act_quantizers[port]
        if id(quantizer) in fixed or not chosen & {n for n, _ in group}:
            continue
        observer = session.stats.of_rows(group[0], quantizer)
        if isinstance(observer, LpObserver):
            observer = observer.with_exponent(p)
            set_range(quantizer, observer, *observer.ranges(quantizer))
            changed |= {n for n, _ in group}
    if session.stats.means is not None:
        # a later pass corrects biases: the loss is that of the result
        session.stats.means.correct(chosen)
    return changed


def check_exponents(exponents: Sequence[float], least: int) -> tuple:
    """Returns exponents as a tuple.

    Raises:
        ValueError: If there are less than ``least``, or one is not above 0.
    """
    if len(exponents) < least:
        raise ValueError(
            f'exponents must be {least} or more numbers above 0, got '
            f'{exponents!r}'
        )
    return tuple(number('exponents', p, above=True) for p in exponents)
