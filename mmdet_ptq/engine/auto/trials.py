# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Makes quantized detectors of one float detector, and tests each once."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from ...calibration import ImageFeed, ResumeStore, Session
from ...cost import cost_of, storage_mb
from ...errors import FAILURES, PTQError, QuantConfigError
from ...passes.measure_sensitivity import entries_of, find_parts
from ...quant_cfg import load_recipe, parse_quant_cfg
from ...surgery import copy_model
from ..fingerprint import fingerprint_of
from ..held_out import Split
from ..quantize import run_quantization
from ..score_file import ScoreFile
from ..scoring import Scoring
from ..steps import with_iters
from .goal import Goal, Rules, Trial, share_words
from .mixed import Mix, facts_of

SCORE = 'output'


class Trials:
    """Trials of one run, kept in a file.

    Args:
        runner (PTQRunner): Its detector is float, and stays so.
        split (Split): Images that calibrate, rank and verify.
        file (ScoreFile): What is known.
        goal (Goal): For what is told.
        own (dict): What the user says beside recipe and bits: rules, scope,
            calibration.
        iters (int, optional): Steps of recipes that learn.
        resume (bool): Whether to go on with a trial that was stopped.
    """

    def __init__(
        self,
        runner: Any,
        split: Split,
        file: ScoreFile,
        goal: Goal,
        own: dict[str, Any],
        iters: int | None = None,
        resume: bool = False,
    ) -> None:
        self.runner, self.split, self.file = runner, split, file
        self.goal, self.own, self.iters = goal, own, iters
        self._resume = resume
        try:
            for one in file.part('trials').values():
                Trial(**one)
        except TypeError as error:
            raise PTQError(
                f'{file.path} has trials that are none of this package '
                f'({error}); delete it, and run without --resume'
            ) from error
        self.scoring = Scoring(runner, split, file)
        self._score = self.scoring.ap(runner.detector)

    def quant_cfg(
        self, recipe: str, bits: str, rules: Rules, scope: str
    ) -> dict[str, Any]:
        """The ``quant_cfg`` of a trial; its rules hold after the user's."""
        found = dict(self.own, recipe=recipe, bits=bits)
        found['rules'] = [*self.own.get('rules', []), *rules]
        if scope:
            found['scope'] = scope
        steps = {} if self.iters is None else with_iters(found, self.iters)
        return {**found, 'pass_args': steps} if steps else found

    def __call__(
        self, recipe: str, bits: str, rules: Rules, scope: str = ''
    ) -> Trial | None:
        """Makes and tests a detector, or remembers what came of it.

        Args:
            recipe (str): Name of the recipe.
            bits (str): Widths where no rule sets any.
            rules (list[dict]): Behind the user's.
            scope (str): In the place of the user's, if there is one.

        Returns:
            Trial, optional: None if it cannot be made.

        Raises:
            PTQError: If it is the first, or whatever is wrong is no matter
                of this one alone.
        """
        kept, left = self.file.part('trials'), self.file.part('left_out')
        # a recipe may be a file that has changed
        content = json.dumps(load_recipe(recipe), sort_keys=True, default=str)
        key = json.dumps(
            [recipe, bits, rules, scope, self.iters, _short(content)]
        )
        if key not in kept and key not in left:
            stopped = Path(
                self.runner.work_dir, f'ptq_resume_trial_{_short(key)}.pth'
            )
            try:
                kept[key] = asdict(
                    self._made(recipe, bits, rules, scope, stopped)
                )
            except FAILURES as error:
                # the first has to work; a further one may ask for more
                if not kept:
                    raise PTQError(f'{recipe} {bits}: {error}') from error
                fits = not isinstance(error, QuantConfigError)
                name = f'{recipe} {bits}' if fits else recipe
                left[key] = f'{name} is left out: {error}'
            self.file.write()
            stopped.unlink(missing_ok=True)
        if key in left:
            self.scoring.say(left[key])
            return None
        trial = Trial(**kept[key])
        self._tell(trial)
        return trial

    def _made(
        self, recipe: str, bits: str, rules: Rules, scope: str, stopped: Path
    ) -> Trial:
        start = time.monotonic()
        model = copy_model(self.runner.detector)
        name = f'{recipe} {bits}'
        quant_cfg = self.quant_cfg(recipe, bits, rules, scope)
        session = self._quantized(
            model,
            quant_cfg,
            on_session=_check_attention,
            path=stopped,
        )
        cost = cost_of(model, session.graph, session.plan)
        full, packed = storage_mb(model)
        self.file.part('whole').update(mb=full, bops=cost['bops']['float'])
        score = self._score.of(model)
        count = len(score.images)

        def seen() -> Any:
            for i, j in enumerate(score.images):
                self.scoring.progress(f'test {name}', '', i, count)
                yield j, score.run(j)

        found = score.total(seen())
        return Trial(
            recipe,
            bits,
            rules,
            scope,
            drop=round(found['score'], 6),
            metric=found['metric'],
            mb=packed,
            bops=cost['bops']['quantized'],
            seconds=round(time.monotonic() - start, 1),
        )

    def _quantized(
        self,
        model: nn.Module,
        quant_cfg: dict[str, Any],
        path: Path | None = None,
        **looks: Callable[[Session], None],
    ) -> Session:
        """Quantizes a copy; its progress is kept where a path is given."""
        images, config = self.split.calibrate, parse_quant_cfg(quant_cfg)
        digest = self.file.found['about']['checkpoint']
        fingerprint = fingerprint_of(digest, config, self.runner.cfg, 1)
        return run_quantization(
            model,
            config,
            images.first(),
            ImageFeed(model, images),
            progress=self.scoring.progress,
            store=ResumeStore(path, fingerprint) if path else None,
            resume=self._resume and path is not None and path.is_file(),
            work_dir=Path(self.runner.work_dir),
            **looks,
        )

    def _tell(self, trial: Trial) -> None:
        whole = self.file.part('whole')
        met = 'within' if self.goal.met(trial) else 'beyond'
        self.scoring.say(
            f'{trial.title}: {100 * trial.drop:+.2f} points lost, '
            f'{share_words(trial.mb, whole["mb"], "MB")}, '
            f'{share_words(trial.bops / 1e9, whole["bops"] / 1e9, "G BOPs")}'
            f', {met} the goal'
        )

    def mix(self, narrow: Trial, wide: str, budget: float) -> Rules:
        """Rules that give the layers of a trial that lose most other widths.

        Scores are those of ``uniform``, which takes seconds to calibrate.

        Args:
            narrow (Trial): Of uniform widths.
            wide (str): Widths that layers may have instead.
            budget (float): In the unit of the goal.

        Returns:
            list[dict]: Empty if nothing can be widened.
        """
        try:
            return self._mixed(narrow, wide, budget)
        except FAILURES as error:
            self.scoring.say(f'widths are not mixed: {error}')
            return []

    def _mixed(self, narrow: Trial, wide: str, budget: float) -> Rules:
        both = [
            ' '.join(filter(None, (bits, narrow.scope)))
            for bits in (wide, narrow.bits)
        ]
        for title, bits in zip(both, (wide, narrow.bits), strict=True):
            self._measure(title, bits, narrow.scope)
        facts = self.file.part('widths')
        scores = [self.scoring.of(f'{SCORE} {title}') for title in both]
        mix = Mix(*(facts[title] for title in both), *scores)
        if self.goal.kind == 'target_size':
            return mix.rules('bits', budget * 8e6, narrow.mb * 8e6)
        return mix.rules('bops', budget, narrow.bops)

    def _measure(self, title: str, bits: str, scope: str) -> None:
        """Scores every part alone, at one width."""
        under = f'{SCORE} {title}'
        facts = self.file.part('widths')
        if title in facts and self._complete(under, facts[title]):
            return
        model = copy_model(self.runner.detector)

        def look(session: Session) -> None:
            parts = find_parts(session.graph, session.plan)
            entries = entries_of([p for p in parts if not p.is_role])
            alone = [e for e in entries if not e.key.startswith('without')]
            facts[title] = facts_of(session)
            self.scoring.say(f'what layers lose at {title}')
            self.scoring.evaluate(SCORE, session, alone, under)

        quant_cfg = self.quant_cfg('uniform', bits, [], scope)
        self._quantized(model, quant_cfg, before_freeze=look)

    def _complete(self, under: str, facts: dict[str, Any]) -> bool:
        known = self.scoring.of(under)
        return all(
            f'alone/{tensor}/{part}' in known
            for part, layers in facts['parts'].items()
            for tensor, key in (('weight', 'weight'), ('act', 'acts'))
            if any(_quantized(facts['layers'][n][key]) for n in layers)
        )


def _short(text: str) -> str:
    """Tells a text from others."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _check_attention(session: Session) -> None:
    """Refuses passes for attention where there is none."""
    passes = session.config.built_passes
    nodes = session.graph.layers.values()
    if any(one.for_attention for one in passes) and not any(
        'attention' in node.roles for node in nodes
    ):
        raise QuantConfigError('this detector has no attention')


def _quantized(bits: int | list[int | None] | None) -> bool:
    return any(bits) if isinstance(bits, list) else bits is not None
