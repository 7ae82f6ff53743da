# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Scores of many settings of one detector, each kept at once."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from typing import Any

from torch import nn

from ..calibration import ActivationCache, ImageFeed, Session
from ..passes.measure_sensitivity import (
    Entry,
    Measure,
    Score,
    find_parts,
    image_score,
)
from ..surgery import copy_model
from .held_out import MetricScore, Split
from .pace import minutes, shares
from .quantize import prepare
from .score_file import ScoreFile


class Scoring:
    """Evaluates what a file does not have yet.

    Args:
        runner (PTQRunner): Its log and its hooks are told.
        split (Split): Images that rank, and that verify.
        file (ScoreFile): Where scores are kept: ``scores``, by kind and
            key of an entry; and ``float``, ``metric`` and ``value`` of the
            float detector.
    """

    def __init__(self, runner: Any, split: Split, file: ScoreFile) -> None:
        self.runner, self.split, self.file = runner, split, file

    def say(self, text: str) -> None:
        """Tells the user, and the log."""
        self.runner.logger.info(text)

    def progress(self, stage: str, item: str, done: float, total: int) -> None:
        """Tells how far a stage is."""
        self.runner.call_hook(
            'on_progress', stage=stage, item=item, done=done, total=total
        )

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Inside, progress is shown."""
        finished = False
        with self.runner.own_hooks():
            try:
                yield
                finished = True
            finally:
                # ends the bar
                self.runner.call_hook('after_quantize', finished=finished)

    def ranking(self, session: Session) -> Session:
        """The same quantization; its feed are the images that rank."""
        feed = ImageFeed(session.model, self.split.rank)
        return replace(session, feed=feed)

    def of(self, name: str) -> dict[str, float]:
        """``score`` by key of an entry, of one kind of score."""
        found = self.file.part('scores').get(name, {})
        return {key: parts['score'] for key, parts in found.items()}

    def score(
        self, name: str, session: Session, cache: ActivationCache
    ) -> Score:
        """A score of the detector of a session.

        Args:
            name (str): A key of ``SCORES``.
            session (Session): After its last pass.
            cache (ActivationCache): Where constants are kept.
        """
        if name == 'ap':
            return self.ap(session.model)
        return image_score(name, self.ranking(session), cache)

    def ap(self, model: nn.Module) -> MetricScore:
        """The score ``'ap'`` of a detector; the float one is tested once.

        Args:
            model (nn.Module): Float, where that is not known yet.

        Raises:
            PTQError: One of its subclasses, if the config or the images do
                not do.
        """
        score = MetricScore(model, self.split.verify, self.runner.cfg)
        known = self.file.part('float')
        if not known:
            # a mistake in quant_cfg shall not cost a test first
            images = self.split.calibrate
            feed = ImageFeed(model, images)
            config = self.runner.quant_config
            prepare(copy_model(model), config, images.first(), feed)
            self.say('testing the float detector')
            score.measure_float()
            self.say(
                f'{score.metric} of the float detector on the images that '
                f'verify: {score.exact:.3f}'
            )
            known.update(metric=score.metric, value=score.exact)
            self.file.write()
        score.metric, score.exact = known['metric'], known['value']
        return score

    def evaluate(
        self,
        name: str,
        session: Session,
        entries: Sequence[Entry],
        under: str = '',
    ) -> None:
        """Evaluates entries that have no score yet, and keeps each at once.

        Args:
            name (str): A key of ``SCORES``.
            session (Session): After its last pass.
            entries (Sequence[Entry]): The first takes the time.
            under (str): Where they are kept. Defaults to the name.
        """
        kept = self.file.part('scores').setdefault(under or name, {})
        with session.cache() as cache:
            score = self.score(name, session, cache)
            measure = Measure(session, score, cache)
            with measure.watching():
                start = time.monotonic()
                found = measure(entries[0])
                one = time.monotonic() - start - sum(measure.seconds)
                # the first forwards take longer than those that follow
                one += len(measure.seconds) * median(measure.seconds)
                kept.setdefault(entries[0].key, found)
                todo = [e for e in entries if e.key not in kept]
                share = sum(shares(session, entries[0], todo))
                self._announce(score, entries, todo, one, share)
                for i, entry in enumerate(todo):
                    self.progress(name, entry.key, i, len(todo))
                    then = todo[i + 1] if i + 1 < len(todo) else None
                    kept[entry.key] = measure(entry, then)
                    self.file.write()
        self.file.write()

    def once(self, name: str, session: Session) -> float:
        """The score of all that is quantized, which is not kept."""
        with session.cache() as cache:
            score = self.score(name, session, cache)
            measure = Measure(session, score, cache)
            with measure.watching():
                return measure(everything(session))['score']

    def _announce(
        self,
        score: Score,
        entries: Sequence[Entry],
        todo: Sequence[Entry],
        one: float,
        share: float,
    ) -> None:
        known = len(entries) - 1 - len(todo)
        had = f', {known} are known already' if known else ''
        self.say(
            f'{score.name}: {len(todo)} evaluations on {len(score.images)} '
            f'images, about {minutes(one * share)}{had}; one of all layers '
            f'takes {one:.1f} s, and what comes before a layer is not '
            'computed again'
        )


def everything(session: Session) -> Entry:
    """All that is quantized at all."""
    return Entry.of_all(find_parts(session.graph, session.plan))
