# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Makes quantized detectors of one float detector, and tests each once."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from ...calibration import ImageFeed, Session
from ...cost import cost_of, storage_mb
from ...errors import QuantConfigError
from ...passes.measure_sensitivity import entries_of, find_parts
from ...quant_cfg import parse_quant_cfg
from ...surgery import copy_model
from ..held_out import MetricScore, Split
from ..quantize import run_quantization
from ..score_file import ScoreFile
from ..scoring import Scoring
from .goal import Goal, Trial, share_words
from .mixed import Mix, widths_of

Rules = list[dict[str, Any]]
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
    """

    def __init__(
        self,
        runner: Any,
        split: Split,
        file: ScoreFile,
        goal: Goal,
        own: dict[str, Any],
        iters: int | None = None,
    ) -> None:
        self.runner, self.split, self.file = runner, split, file
        self.goal, self.own, self.iters = goal, own, iters
        self.scoring = Scoring(runner, split, file)
        score = MetricScore(runner.detector, split.verify, runner.cfg)
        known = file.part('float')
        if not known:
            self.scoring.say('testing the float detector')
            score.measure_float()
            known.update(metric=score.metric, value=score.exact)
            file.write()
        score.metric, score.exact = known['metric'], known['value']
        self._score = score

    def quant_cfg(
        self, recipe: str, bits: str, rules: Rules, scope: str
    ) -> dict[str, Any]:
        """The ``quant_cfg`` of a trial; its rules hold after the user's."""
        found = dict(self.own, recipe=recipe, bits=bits)
        found['rules'] = [*self.own.get('rules', []), *rules]
        if scope:
            found['scope'] = scope
        if self.iters is not None and recipe.endswith('_recon'):
            found['pass_args'] = dict(Reconstruct=dict(iters=self.iters))
        return found

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
            Trial, optional: None if the recipe does not fit this detector.
        """
        kept = self.file.part('trials')
        if recipe.endswith('_attention') and not self._attends():
            return None
        key = json.dumps([recipe, bits, rules, scope, self.iters])
        if key not in kept:
            try:
                kept[key] = asdict(self._made(recipe, bits, rules, scope))
            except QuantConfigError as error:
                # the first recipe has to fit; a further one may ask for more
                if not kept:
                    raise
                self.scoring.say(f'{recipe} is left out: {error}')
                kept[key] = {}
            self.file.write()
        if not kept[key]:
            return None
        trial = Trial(**kept[key])
        self._tell(trial)
        return trial

    def _attends(self) -> bool:
        """Whether the detector has an attention; asked after a trial."""
        found: bool = self.file.part('whole').get('attention', True)
        return found

    def _made(self, recipe: str, bits: str, rules: Rules, scope: str) -> Trial:
        start = time.monotonic()
        model = copy_model(self.runner.detector)
        name = f'{recipe} {bits}'
        quant_cfg = self.quant_cfg(recipe, bits, rules, scope)
        session = self._quantized(model, quant_cfg, lambda _: None)
        cost = cost_of(model, session.graph, session.plan)
        full, packed = storage_mb(model)
        self.file.part('whole').update(
            mb=full,
            bops=cost['bops']['float'],
            attention=any(
                'attention' in node.roles
                for node in session.graph.layers.values()
            ),
        )
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
        before_freeze: Callable[[Session], None],
    ) -> Session:
        images = self.split.calibrate
        return run_quantization(
            model,
            parse_quant_cfg(quant_cfg),
            images.first(),
            ImageFeed(model, images),
            progress=self.scoring.progress,
            work_dir=Path(self.runner.work_dir),
            before_freeze=before_freeze,
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

    def mix(self, narrow: Trial, wide: str, budget: float) -> Rules | None:
        """Rules that widen the layers of a trial that lose most.

        Scores are those of ``uniform``, which takes seconds to calibrate.

        Args:
            narrow (Trial): Of uniform widths.
            wide (str): Widths that layers may have instead.
            budget (float): In the unit of the goal.

        Returns:
            list[dict], optional: None if nothing can be widened.
        """
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
            facts[title] = widths_of(session)
            self.scoring.say(f'what layers lose at {title}')
            self.scoring.evaluate(SCORE, session, alone, under)

        quant_cfg = self.quant_cfg('uniform', bits, [], scope)
        self._quantized(model, quant_cfg, look)

    def _complete(self, under: str, facts: dict[str, Any]) -> bool:
        known = self.scoring.of(under)
        return all(
            f'alone/{tensor}/{part}' in known
            for part, layers in facts['parts'].items()
            for tensor, key in (('weight', 'weight'), ('act', 'acts'))
            if any(_quantized(facts['layers'][n][key]) for n in layers)
        )


def _quantized(bits: int | list[int | None] | None) -> bool:
    return any(bits) if isinstance(bits, list) else bits is not None
