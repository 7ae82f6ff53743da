# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Hooks of the calibration stages."""

import time

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)


@HOOKS.register_module()
class CalibrationHook(Hook):
    """Keeps calibration resumable.

    Args:
        save_interval (float): Seconds between two writes of the resume
            file; a stop loses at most so much. Defaults to 2.
    """

    priority = 'LOW'

    def __init__(self, save_interval: float = 2.0) -> None:
        if save_interval < 0:
            raise ValueError(
                f'save_interval must not be negative, got {save_interval}'
            )
        self.save_interval = save_interval
        self._saved = time.monotonic()

    def after_calib_iter(self, runner: Runner, batch_idx: int) -> None:
        """Writes the statistics so far if the last write is old."""
        if time.monotonic() - self._saved >= self.save_interval:
            runner.session.save()
            self._saved = time.monotonic()


@HOOKS.register_module()
class ProgressHook(Hook):
    """Shows stage, layer and time left in the terminal.

    Args:
        refresh (float): Updates a second. Defaults to 4.
    """

    priority = 'VERY_LOW'

    def __init__(self, refresh: float = 4.0) -> None:
        self._stage = ''
        self._task = None
        self._bar = Progress(
            TextColumn('{task.description:<18}'),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn('{task.fields[item]}'),
            console=Console(stderr=True),
            refresh_per_second=refresh,
            disable=not is_main_process(),
        )

    def on_progress(
        self, runner: Runner, stage: str, item: str, done: int, total: int
    ) -> None:
        """Moves the bar of a stage, making it when the stage is new."""
        item = item if len(item) <= 24 else f'…{item[-23:]}'
        if self._task is None or stage != self._stage:
            self.close()
            self._bar.start()
            self._stage = stage
            self._task = self._bar.add_task(stage, total=total, item=item)
        self._bar.update(self._task, completed=done, total=total, item=item)

    def before_calib(self, runner: Runner, total: int) -> None:
        """Opens the bar of the calibration images."""
        self.on_progress(runner, 'calibration', '', 0, total)

    def after_calib_iter(self, runner: Runner, batch_idx: int) -> None:
        """Counts one image."""
        if self._task is not None:
            self._bar.update(self._task, completed=batch_idx + 1)

    def close(self, finished: bool = True) -> None:
        """Ends the bar, leaving its line in the terminal.

        Args:
            finished (bool): Whether the stage was done; if not, the line
                keeps the count that was reached. Defaults to True.
        """
        if self._task is None:
            return
        task = self._bar.tasks[-1]
        done = task.total if finished else task.completed
        self._bar.update(self._task, completed=done, item='')
        self._bar.stop()
        self._bar.remove_task(self._task)
        self._task = None

    def after_quantize(self, runner: Runner, finished: bool = True) -> None:
        """Ends the bar before the evaluation prints its own lines."""
        self.close(finished)
