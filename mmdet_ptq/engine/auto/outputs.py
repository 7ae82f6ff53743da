# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What a user gets of a search: a table, a picture, and a config."""

import copy
import pprint
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ...report import auto_page, write_text
from ..work_config import work_config
from .goal import Trial, share_words
from .run import AutoRun

PAGE = 'auto.html'
CONFIG = 'auto_config.py'


def words_of(run: AutoRun, chosen: Trial, met: bool) -> list[str]:
    """What came of a search, in sentences.

    Args:
        run (AutoRun): After :meth:`AutoRun.run`.
        chosen (Trial): The best, or what comes nearest.
        met (bool): Whether it keeps to the limit.
    """
    whole = run.whole
    costs = (
        f'{share_words(chosen.mb, whole["mb"], "MB")}; '
        f'{share_words(chosen.bops / 1e9, whole["bops"] / 1e9, "G BOPs")}; '
        f'{whole["metric"]} {chosen.metric:.3f} of {whole["value"]:.3f} on '
        f'{run.options.verify_num} training images held out'
    )
    if met:
        return [f'Chosen: {chosen.title}. {costs}.']
    return [
        f'The goal cannot be reached with {len(run.trials)} detectors that '
        f'were tried. Nearest comes {chosen.title}: {costs}.'
    ]


def _within(run: AutoRun, trial: Trial, chosen: Trial) -> str:
    """Whether a trial is within the goal, or what it is."""
    met = run.options.goal.met(trial)
    if trial == chosen:
        return 'chosen' if met else 'nearest'
    return 'yes' if met else 'no'


def write_outputs(
    run: AutoRun, chosen: Trial, told: list[str]
) -> tuple[Path, Path]:
    """Writes the page and the config of the chosen trial.

    Args:
        run (AutoRun): After :meth:`AutoRun.run`.
        chosen (Trial): The best, or what comes nearest.
        told (list[str]): From :func:`words_of`.

    Returns:
        tuple[Path, Path]: Of both files.

    Raises:
        PTQError: If one cannot be written.
    """
    folder, goal = Path(run.runner.work_dir), run.options.goal
    quant_cfg = run.quant_cfg(chosen)
    cfg = copy.deepcopy(run.runner.cfg)
    cfg.quant_cfg = quant_cfg
    write_text(folder / CONFIG, work_config(cfg).pretty_text)
    rows: list[dict[str, Any]] = [
        dict(
            vars(t),
            title=t.title,
            mixed=bool(t.rules),
            within=_within(run, t, chosen),
        )
        for t in run.trials
    ]
    spelled = pprint.pformat(quant_cfg, sort_dicts=False, width=76)
    page = auto_page(
        goal.words,
        vars(goal),
        rows,
        run.whole,
        told,
        f'quant_cfg = {spelled}',
    )
    write_text(folder / PAGE, page)
    return folder / PAGE, folder / CONFIG


def print_trials(console: Console, run: AutoRun, chosen: Trial) -> None:
    """Prints what was tried.

    Args:
        console (Console): Where to.
        run (AutoRun): After :meth:`AutoRun.run`.
        chosen (Trial): Marked.
    """
    table = Table(title=run.options.goal.words, box=SIMPLE_HEAD)
    table.add_column('tried', overflow='fold')
    table.add_column('within')
    for head in ('points lost', 'MB', 'G BOPs', 'seconds'):
        table.add_column(head, justify='right', no_wrap=True)
    for t in run.trials:
        table.add_row(
            t.title,
            _within(run, t, chosen),
            f'{100 * t.drop:.2f}',
            f'{t.mb:.3f}',
            f'{t.bops / 1e9:.4g}',
            f'{t.seconds:.0f}',
        )
    console.print(table)
