# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What a run keeps for its report, and the report at its end.

Nothing here may cost a run what it has computed: whatever fails is a warning
that names the cause, and the report is made without it.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.dist import all_gather_object, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..calibration import ResumeStore, Session
from ..report import (
    PAGE,
    ImageRow,
    gathered,
    layer_table,
    packed,
    row_of,
    unique,
    unpacked,
    write_data,
    write_report,
)
from .result import Result


class PredictionsHook(Hook):
    """Keeps what a test predicts, of each image the surest boxes.

    Attributes:
        rows (list[ImageRow]): Of this rank.
        problem (str): Why nothing more is kept, '' if it is.
    """

    priority = 'LOW'

    def __init__(self) -> None:
        self.rows: list[ImageRow] = []
        self.problem = ''

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        """Keeps the outputs of a batch."""
        if self.problem:
            return
        start = len(self.rows)

        def keep() -> None:
            for i, sample in enumerate(outputs or ()):
                self.rows.append(row_of(sample, start + i))

        self.problem = _tried(runner, 'keeping predictions', keep)


class ReportParts:
    """What is gathered in the course of a run.

    Args:
        runner (PTQRunner): Its option ``report`` says whether anything is.
        store (ResumeStore): Keeps what a float test predicts until the run
            has ended.
    """

    def __init__(self, runner: Any, store: ResumeStore) -> None:
        self.runner = runner
        self.store = store
        self.wanted = bool(runner.options['report'])
        self.rows: dict[str, list[ImageRow] | None] = dict(
            float=None, quantized=None
        )
        self.layers: dict[str, Any] | None = None
        self.why = dict(
            float='the float detector was not tested (--no-float-eval)',
            quantized='the quantized detector was not tested',
        )
        if runner.options['float_eval']:
            self.why['float'] = (
                'the run was resumed after its float test, whose predictions '
                'were not kept'
            )

    @contextmanager
    def predictions(self, side: str) -> Iterator[None]:
        """Keeps the predictions of a test.

        Args:
            side (str): ``'float'`` or ``'quantized'``.
        """
        if not self.wanted:
            yield
            return
        hook, hooks = PredictionsHook(), self.runner._hooks
        self.runner.register_hook(hook)
        try:
            yield
        finally:
            hooks.remove(hook)
        # every rank has to come here, whatever it could keep
        found = all_gather_object((hook.problem, hook.rows))
        problems = [problem for problem, _ in found if problem]
        if problems:
            self.why[side] = problems[0]
            return
        rows = unique(row for _, some in found for row in some)
        self.rows[side] = rows
        if side == 'float' and is_main_process():

            def keep() -> None:
                self.store.save(packed(rows))

            _tried(self.runner, 'keeping float predictions', keep)

    def resume(self) -> None:
        """Takes the predictions of a float test before a stop, if kept."""
        if not self.wanted or not is_main_process():
            return

        def take() -> None:
            saved = self.store.load()
            if saved is not None:
                self.rows['float'] = unpacked(saved)

        _tried(self.runner, 'reading float predictions', take)

    def layers_of(self, session: Session) -> None:
        """Compares layers, while the float weights are there.

        Args:
            session (Session): After its last pass.
        """
        if not self.wanted or not is_main_process():
            return

        def compare() -> None:
            with session.stage('report: layers'):
                self.layers = layer_table(session)

        problem = _tried(self.runner, 'comparing layers', compare)
        if problem:
            self.why['layers'] = problem

    def write(self, result: Result) -> None:
        """Writes the report beside the result.

        Args:
            result (Result): Complete.
        """
        if not self.wanted:
            return
        folder = result.outputs.place

        def write() -> None:
            with result.stage('report: boxes'):
                data, problems = gathered(
                    self.rows['float'],
                    self.rows['quantized'],
                    self.runner.metainfo.get('classes') or (),
                    self.layers,
                    self.why,
                )
            result.write()
            write_data(folder, data, result.found['started'])
            problems += write_report([folder], folder / PAGE)
            for problem in problems:
                self._warn(f'the report: {problem}')
            self.runner.logger.info(f'Report written to {folder / PAGE}')

        _tried(self.runner, 'making the report', write)

    def _warn(self, text: str) -> None:
        self.runner.logger.log(logging.WARNING, text)


def _tried(runner: Any, what: str, do: Callable[[], None]) -> str:
    """Does something of which a run shall not fail.

    Returns:
        str: What went wrong, told as a warning too; '' if nothing did.
    """
    try:
        do()
    except Exception as error:
        problem = f'{what} failed: {type(error).__name__}: {error}'
        runner.logger.warning(problem)
        return problem
    return ''
