# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What is asked for, and what one trial gives."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...checks import number
from ...errors import QuantConfigError

Rules = list[dict[str, Any]]
"""Of a ``quant_cfg``"""
#: kinds of goals by the option that asks for them
KINDS = dict(
    max_drop='--max-drop',
    target_size='--target-size',
    target_bops='--target-bops',
)


@dataclass(frozen=True)
class Trial:
    """A quantized detector that was tried.

    Attributes:
        recipe (str): Name of the recipe.
        bits (str): Widths where no rule sets any.
        rules (list[dict]): Rules that auto mode wrote.
        scope (str): Scope that auto mode chose, or ``''``.
        drop (float): Metric of the float detector less its own, 0 to 1.
        metric (float): Its own, on images held out.
        mb (float): Parameters, 10^6 bytes.
        bops (float): Bit operations of one image.
        seconds (float): Time it took, of one that was stopped since then.
    """

    recipe: str
    bits: str
    rules: Rules = field(default_factory=list)
    scope: str = ''
    drop: float = 0.0
    metric: float = 0.0
    mb: float = 0.0
    bops: float = 0.0
    seconds: float = 0.0

    @property
    def title(self) -> str:
        """Recipe and widths in a line."""
        mixed = 'mixed' if self.rules else ''
        words = (self.recipe, self.bits, mixed, self.scope)
        return ' '.join(filter(None, words))


@dataclass(frozen=True)
class Goal:
    """A limit, and by what the best within it is chosen.

    Attributes:
        kind (str): A key of :data:`KINDS`.
        limit (float): For ``max_drop`` a difference of the metric, 0 to 1;
            for ``target_size`` 10^6 bytes; for ``target_bops`` bit
            operations.
    """

    kind: str
    limit: float

    def cost(self, trial: Trial) -> float:
        """What is limited, or what is to be small under a largest drop."""
        return trial.mb if self.kind == 'target_size' else trial.bops

    def met(self, trial: Trial) -> bool:
        """Whether a trial keeps to the limit."""
        if self.kind == 'max_drop':
            # metrics are rounded; their difference is not
            return trial.drop <= self.limit + 1e-9
        return self.cost(trial) <= self.limit

    def best(self, trials: Iterable[Trial]) -> Trial | None:
        """The cheapest, or the one of the highest metric, within the limit.

        Equals are chosen by the other of both, then the first.
        """
        met = [trial for trial in trials if self.met(trial)]
        if self.kind == 'max_drop':
            return min(met, key=lambda t: (t.bops, t.drop), default=None)
        return min(met, key=lambda t: (t.drop, self.cost(t)), default=None)

    def nearest(self, trials: Iterable[Trial]) -> Trial:
        """What comes nearest to the limit where nothing is within it."""
        if self.kind == 'max_drop':
            return min(trials, key=lambda t: (t.drop, t.bops))
        return min(trials, key=lambda t: (self.cost(t), t.drop))

    @property
    def words(self) -> str:
        """The goal in words."""
        if self.kind == 'max_drop':
            return (
                f'Fewest bit operations with at most {100 * self.limit:g} '
                'points less'
            )
        if self.kind == 'target_size':
            return f'Best within {self.limit:g} MB'
        return f'Best within {self.limit / 1e9:g} G bit operations'


def goal_of(given: Mapping[str, Any]) -> Goal | None:
    """The goal that a command line asks for.

    Args:
        given (Mapping): Keys of :data:`KINDS` with numbers, points of the
            metric (0 to 100), 10^6 bytes and 10^9 bit operations, or None;
            ``recipe``, ``bits`` and ``print_recipe``, of which none may be
            set beside a goal.

    Returns:
        Goal, optional: None if no goal is asked for.

    Raises:
        QuantConfigError: If several are, or what a goal chooses is set.
    """
    asked = [kind for kind in KINDS if given.get(kind) is not None]
    if not asked:
        return None
    if len(asked) > 1:
        names = ' and '.join(KINDS[kind] for kind in asked)
        raise QuantConfigError(f'{names}: give one goal, not several')
    kind = asked[0]
    for key in ('recipe', 'bits', 'print_recipe'):
        if given.get(key):
            option = f'--{key.replace("_", "-")}'
            raise QuantConfigError(
                f'{KINDS[kind]} chooses recipe and bits by itself; leave '
                f'{option} out, or leave {KINDS[kind]} out'
            )
    low = kind == 'max_drop'
    try:
        limit = number(KINDS[kind], given[kind], above=not low)
    except ValueError as error:
        raise QuantConfigError(str(error)) from None
    unit = dict(max_drop=0.01, target_size=1.0, target_bops=1e9)[kind]
    return Goal(kind, limit * unit)


def share_words(value: float, whole: float, unit: str) -> str:
    """A cost beside that of the float detector.

    Args:
        value (float): In the unit.
        whole (float): In the unit.
        unit (str): Its name.
    """
    percent = 100 * value / whole if whole else 0.0
    return f'{value:.3g} {unit} of {whole:.3g}, {percent:.0f} %'
