# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The pass that scales channels where that changes no output."""

from fnmatch import fnmatchcase
from typing import ClassVar

import torch
from mmengine.dist import all_reduce, get_world_size

from ...calibration import Session
from ...checks import number, one_of
from ...errors import QuantConfigError, unknown
from ...records import EqualizationRecord
from ...registry import PASSES
from ...structures import Scaling
from ..base import BasePass
from ..observe import ACT_OBSERVER, Observe
from .factors import (
    apply_factors,
    by_activations,
    by_weights,
    closed_form,
)
from .seen import Seen
from .trial import Trial

PAIRS = ('layer', 'norm', 'qk', 'pv')
CHOICES = ('closed', 'error')
#: what ``choose='error'`` tries beside no factors and the given exponent
ALPHAS = (0.25, 0.5, 0.75)


@PASSES.register_module()
class EqualizeChannels(BasePass):
    """Scales channels of the float model so that they quantize better.

    What makes a channel is divided by a factor, what reads it is multiplied
    by it, and the float detector stays the same up to rounding. The graph
    says where that is so: between the two are only functions with
    ``f(s x) = s f(x)`` (ReLU, pooling, reshaping and the like; not ReLU6,
    GELU or SiLU), and nothing else reads the channel: no sum, no other
    layer's second input, no output of the detector. A note says what was not
    equalized, and why.

    Args:
        pairs (list[str], optional): Which are scaled. ``'layer'``: a layer
            and the layers that read it (cross-layer equalization, Nagel et
            al., Data-Free Quantization, 2019); ``'norm'``: a norm and the
            layers that read it (SmoothQuant, Xiao et al., 2023); ``'qk'``:
            queries and keys of an attention; ``'pv'``: its values and the
            projection behind it. Defaults to None: all.
        choose (str): ``'closed'``: factors by ``alpha``; ``'error'``: of
            no factors and several, those with which the quantized outputs of
            the readers are nearest to the float ones, on parts of the inputs
            of a few images. Defaults to ``'error'``.
        alpha (float): Of the closed form: 1 evens the channels out where
            they are made, 0 where they are read. Factors of pairs of layers
            come from their weights, all others from activations. Where the
            error chooses, 0.25, 0.5 and 0.75 are tried too, and both for
            pairs of layers. Defaults to 0.5.
        only (list[str], optional): Names or globs of the layers and norms
            whose output channels are scaled, with those that have to be
            scaled alike. One that matches a layer whose channels cannot be
            scaled is an error. Defaults to None: all that can be.

    Raises:
        ValueError: If an argument is not among the allowed values.
    """

    needs: ClassVar[frozenset[str]] = frozenset({'folded'})
    gives: ClassVar[frozenset[str]] = frozenset({'equalized'})
    # a layer that shifts its inputs itself has no homogeneous input
    refuses: ClassVar[frozenset[str]] = frozenset(
        {'scaled', 'observers', 'ranges', 'learned'}
    )

    def __init__(
        self,
        pairs: list[str] | None = None,
        choose: str = 'error',
        alpha: float = 0.5,
        only: list[str] | None = None,
    ) -> None:
        self.pairs = PAIRS if pairs is None else tuple(pairs)
        for pair in self.pairs:
            one_of('pairs', pair, PAIRS)
        for key, value in (('pairs', pairs), ('only', only)):
            if value is not None and not value:
                raise ValueError(f'{key} is empty: nothing would be scaled')
        self.choose = one_of('choose', choose, CHOICES)
        self.alpha = number('alpha', alpha, 0, 1)
        self.only = only

    def prepare(self, session: Session) -> None:
        """See :meth:`BasePass.prepare`; what is asked for has to be exact."""
        if self.only is None:
            return
        scalings, unscaled = session.graph.find_scalings()
        makers = {n for s in scalings for n in s.outputs}
        for pattern in self.only:
            names = [
                n
                for n in dict.fromkeys([*makers, *unscaled])
                if fnmatchcase(n, pattern)
            ]
            if not names:
                known = sorted({*makers, *unscaled})
                raise QuantConfigError(
                    'EqualizeChannels.only: '
                    + unknown('layer or norm', pattern, known)
                )
            for name in names:
                if name not in makers:
                    raise QuantConfigError(
                        f'EqualizeChannels.only: the channels of {name} '
                        'cannot be scaled without changing the detector: '
                        f'{unscaled[name]}; leave it out'
                    )

    @torch.no_grad()
    def run(self, session: Session) -> None:
        """See :meth:`BasePass.run`."""
        scalings, unscaled = session.graph.find_scalings()
        scalings = [s for s in scalings if self._wanted(s)]
        session.notes += self._refused(unscaled)
        if not scalings:
            session.notes.append(
                'EqualizeChannels: this detector has no such channels to scale'
            )
        with session.stage('equalization'):
            seen = Seen(session.layers, scalings)
            if self._looks(scalings):
                seen.watch(session, self.choose == 'error')
            trial = Trial(session.layers, seen, _observer(session))
            for i, scaling in enumerate(scalings):
                name = _name(scaling)
                session.progress('equalization', name, i, len(scalings))
                self._scale(session, scaling, seen, trial)

    def _wanted(self, scaling: Scaling) -> bool:
        return scaling.kind in self.pairs and (
            self.only is None
            or any(
                fnmatchcase(name, pattern)
                for name in scaling.outputs
                for pattern in self.only
            )
        )

    def _looks(self, scalings: list[Scaling]) -> bool:
        """Whether calibration images are looked at."""
        return bool(scalings) and (
            self.choose == 'error' or any(s.kind != 'layer' for s in scalings)
        )

    def _refused(self, unscaled: dict[str, str]) -> list[str]:
        """A line for each reason."""
        if self.only is not None:
            return []
        names: dict[str, list[str]] = {}
        for name, why in unscaled.items():
            names.setdefault(why, []).append(name)
        return [
            f'not equalized, {why}: {", ".join(found[:3])}'
            + (f' and {len(found) - 3} more' if found[3:] else '')
            for why, found in names.items()
        ]

    def _scale(
        self, session: Session, scaling: Scaling, seen: Seen, trial: Trial
    ) -> None:
        layers = session.layers
        ways = {
            'activations': lambda: by_activations(scaling, layers, seen),
            'weights': lambda: by_weights(scaling, layers),
        }
        candidates = self._candidates(scaling, ways)
        before = after = None
        if self.choose == 'error':
            errors = _added([trial.error(scaling, s) for *_, s in candidates])
            best = min(range(len(errors)), key=errors.__getitem__)
            before, after = errors[0], errors[best]
            candidates = [candidates[best]]
        by, alpha, factors = candidates[0]
        if by:
            apply_factors(session.model, scaling, factors)
            trial.take(scaling, factors)
        session.records.append(
            EqualizationRecord(
                _name(scaling),
                scaling.kind,
                by,
                alpha,
                float(factors.max() / factors.min()),
                before,
                after,
            )
        )

    def _candidates(self, scaling: Scaling, ways: dict) -> list[tuple]:
        """What they come from, alpha, and factors."""
        if self.choose == 'closed':
            by = 'weights' if scaling.kind == 'layer' else 'activations'
            return [(by, self.alpha, closed_form(*ways[by](), self.alpha))]
        alphas = sorted({*ALPHAS, self.alpha})
        found = [('', 0.0, torch.ones(scaling.count, dtype=torch.float64))]
        for by in ('activations', 'weights'):
            if by == 'activations' or scaling.kind == 'layer':
                pair = ways[by]()
                found += [(by, a, closed_form(*pair, a)) for a in alphas]
        return found


def _observer(session: Session) -> dict:
    """With which activations will be observed."""
    for one in session.config.built_passes:
        if isinstance(one, Observe):
            return one.observer
    return ACT_OBSERVER


def _name(scaling: Scaling) -> str:
    makers, readers = list(scaling.outputs), list(scaling.inputs)
    readers = readers or list(dict.fromkeys(n for n, _ in scaling.ports))
    return ' -> '.join(
        names[0] + (f' and {len(names) - 1} more' if names[1:] else '')
        for names in (makers, readers)
    )


def _added(errors: list[float]) -> list[float]:
    """Mean errors over all ranks."""
    if get_world_size() == 1:
        return errors
    total = torch.tensor(errors, dtype=torch.float64)
    all_reduce(total)
    return (total / get_world_size()).tolist()
