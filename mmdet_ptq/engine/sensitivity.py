# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What each layer and each part of a detector loses: the whole run."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from ..calibration import ImageFeed, ResumeStore, Session
from ..cost import storage_mb
from ..errors import FAILURES, QuantConfigError
from ..passes.measure_sensitivity import (
    ALL,
    Entry,
    Part,
    Rank,
    Suggestion,
    entries_of,
    find_parts,
    layer_errors,
    ranked,
    spearman,
    spread_over,
    suggestion,
    with_rules,
)
from ..quant_cfg import QuantConfig, parse_quant_cfg
from ..surgery import copy_model
from .checkpoint import sha256
from .fingerprint import fingerprint_of
from .held_out import split_images
from .pace import minutes
from .quantize import run_quantization
from .score_file import ScoreFile
from .scoring import Scoring, everything
from .sensitivity_options import SensitivityOptions

FILE = 'sensitivity.json'


class SensitivityRun:
    """Measures, and keeps every score in the work dir at once.

    Args:
        runner (PTQRunner): With a float checkpoint and a ``quant_cfg``.
        options (SensitivityOptions): What is measured.

    Raises:
        PTQError: One of its subclasses, on whatever is wrong.
    """

    def __init__(self, runner: Any, options: SensitivityOptions) -> None:
        self.runner, self.options = runner, options
        path = runner.load_float()
        cfg, config = runner.cfg, runner.quant_config
        self.split = split_images(
            cfg, config.calibration, options.rank_num, options.verified
        )
        self._digest = sha256(path)
        names = self.split.names()
        about = dict(
            checkpoint=self._digest,
            fingerprint=fingerprint_of(self._digest, config, cfg, 1),
            images=[names['calibrate'], names['rank']],
            verify=names['verify'],
            config=cfg.filename or '',
            path=str(path),
            title=config.title,
        )
        place = Path(runner.work_dir) / FILE
        self.file = ScoreFile(place, about, options.resume)
        self.scoring = Scoring(runner, self.split, self.file)
        if options.verified:
            # what is wrong with AP is found before hours of other scores
            self.scoring.ap(runner.detector)
        # for the suggestion
        self._float = copy_model(runner.detector)
        self._stores: list[ResumeStore] = []

    def measure(self) -> dict[str, Any]:
        """Measures what the file does not have.

        Returns:
            dict[str, Any]: The content of the file; plain types.
        """
        runner = self.runner
        self.scoring.say(self.split.words())
        self._began = time.monotonic()
        with self.scoring.shown():
            model, config = runner.detector, runner.quant_config
            self._quantize(model, config, self._measure, 'sensitivity')
        return self.file.found

    def suggest(self) -> dict[str, Any]:
        """Tries what is suggested, so that what is said of it is so.

        Returns:
            dict[str, Any]: The content of the file; plain types.
        """
        one = self.file.part('suggestion').get(self.options.score)
        if one and not one.keys() & {'after', 'failed'}:
            with self.scoring.shown():
                try:
                    one.update(self._tried(one['quant_cfg']))
                except FAILURES as error:
                    one['failed'] = str(error)
            self.file.write()
        for store in self._stores:
            store.clear()
        return self.file.found

    def _quantize(
        self,
        model: nn.Module,
        config: QuantConfig,
        measure: Callable[[Session], None],
        name: str,
    ) -> None:
        """Calibrates, and measures while the float weights are there."""
        folder, cfg = Path(self.runner.work_dir), self.runner.cfg
        store = ResumeStore(
            folder / f'ptq_resume_{name}.pth',
            fingerprint_of(self._digest, config, cfg, 1),
        )
        self._stores.append(store)
        run_quantization(
            model,
            config,
            self.split.calibrate.first(),
            ImageFeed(model, self.split.calibrate),
            progress=self.scoring.progress,
            store=store,
            # scores are kept elsewhere
            resume=self.options.resume and store.path.is_file(),
            work_dir=folder,
            before_freeze=measure,
        )

    def _measure(self, session: Session) -> None:
        """Everything of one calibrated detector."""
        name, scoring = self.options.score, self.scoring
        parts = find_parts(session.graph, session.plan)
        entries = entries_of(parts)
        if name == 'feature':
            parts = self._before_heads(session, parts)
            entries = [entries[0], *entries_of(parts)[1:]]
        size, packed = storage_mb(session.model)
        self.file.part('size').update(float=size, quantized=packed)
        self.file.part('parts').update({p.name: p.layers for p in parts})
        scoring.say(
            'after the evaluations comes one more quantization, to try what '
            f'is suggested: about {minutes(time.monotonic() - self._began)}'
        )
        scoring.evaluate(name, session, entries)
        if 'layers' not in self.file.found:
            scoring.progress('layers', '', 0, 1)
            errors = layer_errors(scoring.ranking(session))
            self.file.part('layers').update(errors)
            self.file.write()
        single = [part for part in parts if not part.is_role]
        ranks = ranked(single, scoring.of(name))
        if self.options.check:
            self._check(session, ranks)
        found = suggestion(
            ranks, session.graph, session.plan, self.options.keep
        )
        self._keep(found)

    def _before_heads(self, session: Session, parts: list[Part]) -> list[Part]:
        """What the maps of backbone and neck can show."""
        seen = {
            n
            for n, node in session.graph.layers.items()
            if node.roles & {'backbone', 'neck'}
        }
        kept = [part for part in parts if set(part.layers) <= seen]
        if not kept:
            raise QuantConfigError(
                '--score feature looks at backbone and neck, of which '
                'nothing is quantized; take --score output'
            )
        if len(kept) < len(parts):
            self.scoring.say(
                f'{len(parts) - len(kept)} layers and parts come after '
                'backbone and neck, where --score feature sees nothing'
            )
        return kept

    def _check(self, session: Session, ranks: list[Rank]) -> None:
        """Scores some layers by AP too, spread over the ranking."""
        chosen = spread_over(ranks, self.options.check)
        entries = [Entry.both(rank.part) for rank in chosen]
        self.scoring.evaluate('ap', session, [everything(session), *entries])
        drops = self.scoring.of('ap')
        pairs = {
            rank.part.name: [rank.score, drops[entry.key]]
            for rank, entry in zip(chosen, entries, strict=True)
        }
        cheap, exact = zip(*pairs.values(), strict=True)
        found = dict(pairs=pairs, spearman=spearman(cheap, exact))
        self.file.part('check')[self.options.score] = found
        self.file.write()

    def _keep(self, found: Suggestion | None) -> None:
        """Puts a suggestion in the file, which is to be tried yet."""
        kept, name = self.file.part('suggestion'), self.options.score
        if found is None:
            kept.pop(name, None)
        elif name not in kept or kept[name]['rules'] != found.rules:
            given = self.runner.cfg.quant_cfg.to_dict()
            kept[name] = dict(
                rules=found.rules,
                layers=found.layers,
                words=found.words,
                quant_cfg=with_rules(given, found),
                before=self.scoring.of(name)[ALL],
                mb_before=self.file.part('size')['quantized'],
            )
        self.file.write()

    def _tried(self, quant_cfg: dict[str, Any]) -> dict[str, Any]:
        """Score and size with other rules."""
        found: dict[str, Any] = {}

        def look(session: Session) -> None:
            found['after'] = self.scoring.once(self.options.score, session)
            found['mb_after'] = storage_mb(session.model)[1]

        config = parse_quant_cfg(quant_cfg)
        self._quantize(self._float, config, look, 'suggestion')
        return found
