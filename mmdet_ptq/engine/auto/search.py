# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Which recipes and widths are tried, and in which order."""

from collections.abc import Callable, Sequence

from ...quant_cfg import parse_bits
from .goal import Goal, Rules, Trial

Try = Callable[[str, str, Rules, str], Trial | None]
"""``try_(recipe, bits, rules, scope)``; None if that cannot be made"""
Mixing = Callable[[Trial, str, float], Rules]
"""``mix(narrow, wide_bits, budget)``: rules that give some layers of the
narrow trial the other widths; empty if that is not possible"""

#: from the cheapest to the dearest to make
RECIPES = ('uniform', 'gptq', 'gptq_attention', 'gptq_recon')
#: from wide to narrow: products of their bits fall
WIDTHS = ('w8a8', 'w6a6', 'w4a8', 'w4a6', 'w4a4', 'w3a4', 'w3a3')
#: where the size of parameters counts alone
SIZES = ('w8a8', 'w6a8', 'w4a8', 'w3a8', 'w2a8')
#: predictions in 8 bits, which recipes leave float
SCOPE = 'first_last_8'
#: what a scope may lose of the metric, where a goal does not say it
SPARE = 0.002
#: after so many widths in a row that lose too much a recipe is left
GIVE_UP = 2
#: how often widths are mixed anew
STEPS = 3


class Search:
    """Tries cheap recipes before dear ones, then mixes widths.

    Args:
        goal (Goal): What is asked for.
        recipes (Sequence[str]): In the order in which they are tried.
        try_ (Callable): Makes and tests a detector.
        mix (Callable): Gives each layer a width.
        scope (bool): Whether :data:`SCOPE` is tried. Defaults to True.

    Attributes:
        scope (str): What is quantized, as far as it was found.
        trials (list[Trial]): What was tried, in order.
    """

    def __init__(
        self,
        goal: Goal,
        recipes: Sequence[str],
        try_: Try,
        mix: Mixing,
        scope: bool = True,
    ) -> None:
        self.goal, self.recipes = goal, recipes
        self._try, self._mix = try_, mix
        self.scope = ''
        self._scoped = scope
        self.trials: list[Trial] = []

    def run(self) -> Trial | None:
        """Tries; gives the best within the limit, None if there is none."""
        if self._scoped:
            self._choose_scope()
        if self.goal.kind == 'max_drop':
            self._smallest()
        else:
            self._within()
        return self.goal.best(self.trials)

    def _attempt(
        self, recipe: str, bits: str, rules: Rules | None = None
    ) -> Trial | None:
        found = self._try(recipe, bits, rules or [], self.scope)
        if found is not None and found not in self.trials:
            self.trials.append(found)
        return found

    def _choose_scope(self) -> None:
        """Quantizes predictions too, if that loses little at 8 bits."""
        plain = self._attempt(self.recipes[0], WIDTHS[0])
        self.scope = SCOPE
        more = self._attempt(self.recipes[0], WIDTHS[0])
        if not (plain and more and self._spares(plain, more)):
            self.scope = ''

    def _spares(self, plain: Trial, more: Trial) -> bool:
        """Whether quantized predictions lose little enough to stay."""
        if self.goal.kind == 'max_drop' and self.goal.met(plain):
            return self.goal.met(more)
        return more.drop <= plain.drop + SPARE

    def _smallest(self) -> None:
        """Goes down the widths until the metric loses too much."""
        for recipe in self.recipes:
            best, lost = self._best(), 0
            for bits in WIDTHS:
                if best is not None and _area(bits) >= _area(best.bits):
                    continue
                trial = self._attempt(recipe, bits)
                if trial is None:
                    break
                lost = 0 if self.goal.met(trial) else lost + 1
                if lost == GIVE_UP:
                    break
        best = self._best()
        narrow = best and self._next(best)
        if best and narrow:
            self._bisect(best, narrow)

    def _best(self) -> Trial | None:
        """The best of the scope that was found."""
        return self.goal.best(t for t in self.trials if t.scope == self.scope)

    def _next(self, best: Trial) -> Trial | None:
        """Of those below it, which lose too much, the one that loses least.

        It may be of a recipe that takes long, and not narrower in each of
        both widths.
        """
        below = [
            t
            for t in self.trials
            if t.scope == best.scope and t.bops < best.bops
        ]
        return min(below, key=lambda t: (t.drop, -t.bops), default=None)

    def _bisect(self, best: Trial, narrow: Trial) -> None:
        """Mixes the widths of two trials until little is left between."""
        low, high = narrow.bops, best.bops
        for _ in range(STEPS):
            budget = (low + high) / 2
            rules = self._mix(narrow, best.bits, budget)
            if not rules:
                return
            trial = self._attempt(narrow.recipe, narrow.bits, rules)
            if trial is None:
                return
            if self.goal.met(trial):
                high = trial.bops
            else:
                low = budget

    def _within(self) -> None:
        """Goes down the widths until the cost is within the limit."""
        widths = SIZES if self.goal.kind == 'target_size' else WIDTHS
        narrow = None
        for narrow in widths:
            trial = self._attempt(self.recipes[0], narrow)
            if trial is not None and self.goal.met(trial):
                break
        else:
            return
        for recipe in self.recipes[1:]:
            self._attempt(recipe, narrow)
        best = self._best()
        if best is None:
            return
        wider = widths[: widths.index(narrow)]
        # the next width, and the widest: layers may need either
        for wide in dict.fromkeys([*wider[-1:], *wider[:1]]):
            self._fill(best, wide)

    def _fill(self, narrow: Trial, wide: str) -> None:
        """Spends what is left of the limit on the layers that need it."""
        budget = self.goal.limit
        for _ in range(2):
            rules = self._mix(narrow, wide, budget)
            if not rules:
                return
            trial = self._attempt(narrow.recipe, narrow.bits, rules)
            if trial is None or self.goal.met(trial):
                return
            # scales and the like that a rule brings along
            budget -= self.goal.cost(trial) - self.goal.limit


def _area(bits: str) -> int:
    """Bits of a product of a weight and an input."""
    found = parse_bits(bits)
    return found.weight * found.act
