# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Auto mode: from a goal to a recipe with widths."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...checks import whole
from ...errors import QuantConfigError
from ...quant_cfg import load_recipe
from ..checkpoint import sha256
from ..fingerprint import fingerprint_of
from ..held_out import split_images
from ..score_file import ScoreFile
from ..steps import learning_passes
from .goal import Goal, Trial
from .search import RECIPES, Search
from .trials import Trials

FILE = 'auto.json'
#: what auto mode chooses by itself
CHOSEN = ('recipe', 'bits', 'passes', 'pass_args')


@dataclass(frozen=True)
class AutoOptions:
    """How a goal is looked for.

    Attributes:
        goal (Goal): What is asked for.
        recipes (Sequence[str]): In the order in which they are tried.
        rank_num (int): Images for the scores of layers. Defaults to 8.
        verify_num (int): Images with annotations. Defaults to 128.
        iters (int, optional): Steps of recipes that learn.
        resume (bool): Go on from the file in the work dir.

    Raises:
        QuantConfigError: If one is not among the allowed values.
    """

    goal: Goal
    recipes: Sequence[str] = RECIPES
    rank_num: int = 8
    verify_num: int = 128
    iters: int | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        try:
            whole('--rank-num', self.rank_num, 1)
            whole('--verify-num', self.verify_num, 1)
            if self.iters is not None:
                whole('--iters', self.iters, 1)
        except ValueError as error:
            raise QuantConfigError(str(error)) from None
        if not self.recipes:
            raise QuantConfigError('--recipes: give at least one recipe')
        for recipe in self.recipes:
            load_recipe(recipe)  # says which there are
        if self.iters is not None and not any(
            learning_passes(dict(recipe=name, bits='w8a8'))
            for name in self.recipes
        ):
            raise QuantConfigError(
                f'--iters {self.iters}: none of --recipes '
                f'{",".join(self.recipes)} learns in steps; leave it out, or '
                'add one that does, e.g. gptq_recon'
            )


def own_settings(quant_cfg: dict[str, Any]) -> dict[str, Any]:
    """What a config says beside what auto mode chooses.

    Args:
        quant_cfg (dict): Of the config, checked keys.

    Raises:
        QuantConfigError: If it chooses by itself.
    """
    for key in CHOSEN:
        if key in quant_cfg:
            raise QuantConfigError(
                f"the config's quant_cfg has {key!r}, which --max-drop, "
                '--target-size and --target-bops choose by themselves; take '
                'it out, or leave the goal out'
            )
    return dict(quant_cfg)


class AutoRun:
    """Finds recipe and widths, and keeps every trial at once.

    Args:
        runner (PTQRunner): With a float checkpoint.
        own (dict): From :func:`own_settings`.
        options (AutoOptions): How.

    Attributes:
        trials (list[Trial]): What was tried, in order.
        whole (dict): ``mb`` and ``bops`` of the float detector, and its
            ``metric``.

    Raises:
        PTQError: One of its subclasses, on whatever is wrong.
    """

    def __init__(
        self, runner: Any, own: dict[str, Any], options: AutoOptions
    ) -> None:
        self.runner, self.options = runner, options
        path = runner.load_float()
        split = split_images(
            runner.cfg,
            runner.quant_config.calibration,
            options.rank_num,
            options.verify_num,
        )
        digest = sha256(path)
        names = split.names()
        about = dict(
            checkpoint=digest,
            fingerprint=fingerprint_of(
                digest, runner.quant_config, runner.cfg, 1
            ),
            images=[names['calibrate'], names['rank']],
            verify=names['verify'],
            config=runner.cfg.filename or '',
            path=str(path),
            title=options.goal.words,
        )
        place = Path(runner.work_dir) / FILE
        file = ScoreFile(place, about, options.resume)
        runner.logger.info(
            f'Goal: {options.goal.words}. {split.words()}. Recipes: '
            f'{", ".join(options.recipes)}'
        )
        self.file = file
        self.make = Trials(
            runner,
            split,
            file,
            options.goal,
            own,
            options.iters,
            options.resume,
        )
        self.trials: list[Trial] = []

    def run(self) -> Trial | None:
        """Tries.

        Returns:
            Trial, optional: The best within the limit, None if nothing is.
        """
        search = Search(
            self.options.goal,
            self.options.recipes,
            self.make,
            self.make.mix,
            scope='scope' not in self.make.own,
        )
        with self.make.scoring.shown():
            best = search.run()
        self.trials = search.trials
        return best

    @property
    def whole(self) -> dict[str, Any]:
        """See the class."""
        return dict(self.file.part('whole'), **self.file.part('float'))

    def quant_cfg(self, trial: Trial) -> dict[str, Any]:
        """The ``quant_cfg`` of a trial, for a config."""
        return self.make.quant_cfg(
            trial.recipe, trial.bits, trial.rules, trial.scope
        )
