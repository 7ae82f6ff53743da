# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The pass that gives what norms make a grid for each channel, for free."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..calibration import Session
from ..checks import number, one_of, whole
from ..errors import QuantConfigError
from ..records import ReparametrizationRecord
from ..registry import PASSES
from ..structures import NormLink, Port, Scaling
from ..surgery import (
    ReparametrizedNorm,
    ScaledInput,
    can_pad,
    can_shift,
    find_module,
)
from .base import BasePass
from .scale_inputs.free import find_free
from .scale_inputs.grids import (
    ChannelRanges,
    Levels,
    channel_ranges,
    percentile_ranges,
)
from .scale_inputs.rows import levels_of, may_scale, sample_rows


@dataclass(frozen=True)
class Site:
    """Inputs behind a norm whose channels are brought to one grid.

    Attributes:
        link (NormLink): The norm.
        groups (list[list[Port]]): Inputs, each group with one quantizer.
        free (bool): Whether the norm is changed, which nothing else reads.
    """

    link: NormLink
    groups: list[list[Port]]
    free: bool


#: arguments that do not always act, and with what they do
ACTS = dict(
    percentiles=('ranges', ('percentile',)),
    p=('ranges', ('lp',)),
)


@PASSES.register_module()
class ReparametrizeNorm(BasePass):
    """Scale reparametrization behind norms (RepQ-ViT, Li et al., 2023).

    Of each layer that reads what a layer or group norm makes, channels of
    the input get scales and zero points of their own, which are then brought
    to their means: one grid of the tensor is a grid for each channel. Where
    nothing but these layers reads the norm, its weight and bias and those of
    the layers take the change, at no cost; what Swin pads in between is
    padded with the value of each channel. Elsewhere (the residual of
    post-norm layers, a positional encoding that is added) the layers take
    ``x / r - b`` themselves, one multiplication and addition an element. The
    float model stays the same. Observe and SetRanges behind it find the one
    range.

    Layers with groups, or with a weight that others have too, and inputs
    with several ranges already, stay as they are.

    Args:
        ranges (str): ``'percentile'`` takes the range of each channel
            between two quantiles, of several the pair of least squared
            error; ``'lp'`` searches the one of least Lp error. Defaults to
            ``'percentile'``.
        percentiles (Sequence[float]): For ``'percentile'``, shares above
            0.5. Defaults to those of RepQ-ViT.
        p (float): For ``'lp'``, the exponent. Defaults to 2.4.
        rows (int): Most rows of a call, of an image. Defaults to 256.

    Raises:
        ValueError: If an argument is not among the allowed values, or does
            not act beside the others.
    """

    needs: ClassVar[frozenset[str]] = frozenset({'folded'})
    gives: ClassVar[frozenset[str]] = frozenset({'equalized', 'scaled'})
    refuses: ClassVar[frozenset[str]] = frozenset(
        {'scaled', 'observers', 'ranges', 'learned'}
    )

    def __init__(
        self,
        ranges: str = 'percentile',
        percentiles: Sequence[float] = (0.999, 0.9999, 0.99999),
        p: float = 2.4,
        rows: int = 256,
    ) -> None:
        self.ranges = one_of('ranges', ranges, ('percentile', 'lp'))
        self.percentiles = [
            number('percentiles', share, 0.5, 1, above=True)
            for share in percentiles
        ]
        if not self.percentiles:
            raise ValueError('percentiles is empty: no range would be tried')
        self.p = number('p', p, above=True)
        self.rows = whole('rows', rows, 1)
        self.refuse_idle(ACTS)

    def prepare(self, session: Session) -> None:
        """See :meth:`BasePass.prepare`."""
        behind = []
        for link in session.graph.norm_links:
            found = _groups(session, link)
            behind += [g for g in found if g not in behind]
        if behind and not any(_usable(session, g) for g in behind):
            raise QuantConfigError(
                f'ReparametrizeNorm: of {len(behind)} inputs behind norms '
                'none has one range for all channels, and it is channels of '
                'one range that the pass brings to one grid; set '
                "act=dict(granularity='tensor') for them, or leave it out"
            )

    @torch.no_grad()
    def run(self, session: Session) -> None:
        """See :meth:`BasePass.run`."""
        sites = find_sites(session)
        if not sites:
            session.warn(
                'ReparametrizeNorm: no quantized layer reads a layer or group '
                'norm here, so nothing was reparametrized; the passes behind '
                'it go on as they would without it'
            )
            return
        with session.stage('norms'):
            names = {g[0][0] for site in sites for g in site.groups}
            seen = sample_rows(session, names, self.rows)
            for i, site in enumerate(sites):
                session.progress('norms', site.link.norm, i, len(sites))
                rows = [
                    part
                    for group in site.groups
                    for part in levels_of(
                        seen, group[0][0], None, False, session.device
                    )
                ]
                self._site(session, site, rows)
        records = [
            r
            for r in session.records
            if isinstance(r, ReparametrizationRecord)
        ]
        free = sum(r.free for r in records)
        session.notes.append(
            f'ReparametrizeNorm: {len(records)} tensors behind norms had a '
            f'grid for each channel and have one for all, {free} of them at '
            'no cost'
            + (
                ''
                if free == len(records)
                else '; the layers behind the others multiply and add for '
                'each element'
            )
        )

    def _site(self, session: Session, site: Site, rows: Levels) -> None:
        """Decides on one tensor, or all that a norm alone makes."""
        name, port = site.groups[0][0]
        if not rows:
            session.notes.append(
                f'{name}: its input keeps one grid, as no calibration image '
                'reaches it'
            )
            return
        act = session.layers[name].act_quantizers[port]
        shifted = not any(_symmetric(session, g) for g in site.groups)
        channels = self._ranges(rows, act.bits, shifted)
        channels = channels.one_grid(act.bits, shifted)
        layers = [n for group in site.groups for n, _ in group]
        if site.free:
            layers = list(site.link.layers)
            session.edit(
                ReparametrizedNorm.by(
                    site.link.norm,
                    layers,
                    channels.factors,
                    channels.shift,
                    site.link.pads,
                )
            )
        else:
            for n in layers:
                edit = ScaledInput.by(n, channels.factors, channels.shift)
                session.edit(edit)
        factors = channels.factors
        ratio = float(factors.max() / factors.min())
        session.records.append(
            ReparametrizationRecord(
                name, site.link.norm, layers, ratio, site.free
            )
        )

    def _ranges(self, rows: Levels, bits: int, shifted: bool) -> ChannelRanges:
        if self.ranges == 'lp':
            return channel_ranges(rows, bits, self.p, shifted)
        return percentile_ranges(rows, bits, self.percentiles, shifted)


def find_sites(session: Session) -> list[Site]:
    """Inputs behind norms that can have a grid for each channel.

    Args:
        session (Session): The running quantization.

    Returns:
        list[Site]: In execution order of the norms.
    """
    scalings, _ = session.graph.find_scalings()
    found, done = [], set()
    for link in session.graph.norm_links:
        groups = [g for g in _groups(session, link) if g[0] not in done]
        usable = [g for g in groups if _usable(session, g)]
        done |= {g[0] for g in usable}
        if usable == groups != [] and _foldable(session, link, scalings):
            found.append(Site(link, groups, True))
        else:
            found += [Site(link, [g], False) for g in usable]
    return found


def _groups(session: Session, link: NormLink) -> list[list[Port]]:
    """Quantized inputs of the layers that read a norm, or it in a sum."""
    names = {*link.layers, *link.sums}
    return [
        g
        for g in session.plan.groups
        if any(n in names and port == 'input' for n, port in g)
    ]


def _symmetric(session: Session, group: list[Port]) -> bool:
    name, port = group[0]
    return bool(session.layers[name].act_quantizers[port].symmetric)


def _usable(session: Session, group: list[Port]) -> bool:
    return may_scale(session, group) and (
        _symmetric(session, group)
        or all(can_shift(session.layers[n]) for n, _ in group)
    )


def _foldable(
    session: Session, link: NormLink, scalings: list[Scaling]
) -> bool:
    """Whether norm and layers can take factors and shifts, and nobody sees.

    Factors go through padding with zeros as they are; for shifts, whoever
    pads must be able to pad with the value of each channel.
    """
    free = find_free(session.layers, scalings, set(link.layers))
    if not link.exclusive or free is None or set(free.outputs) != {link.norm}:
        return False
    each = torch.arange(1, free.count + 1)
    return (
        torch.equal(free.outputs[link.norm].cpu(), each)
        and all(torch.equal(i.cpu(), each) for i in free.inputs.values())
        and all(
            can_shift(session.layers[n]) and _whole(session, n)
            for n in link.layers
        )
        and all(can_pad(find_module(session.model, n)) for n in link.pads)
    )


def _whole(session: Session, name: str) -> bool:
    return session.graph.layers[name].groups == 1
