# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Hooks of the calibration stages."""

import time
from collections.abc import Callable
from datetime import timedelta

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


class ProgressLines:
    """A line now and then, where there is no terminal for a bar.

    The time left is that of the progress since the first that was told: what
    a stage does before it, it does once.

    Args:
        say (Callable): Takes a line.
        interval (float): Seconds between two lines.
    """

    def __init__(self, say: Callable[[str], None], interval: float) -> None:
        self._say = say
        self._interval = interval
        self._images = 0
        self._stage = ''
        self._first = 0.0
        self._since: tuple[float, float] | None = None
        self._last = self._begin = 0.0

    def __call__(self, stage: str, item: str, done: float, total: int) -> None:
        """See :meth:`ProgressHook.on_progress`."""
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._first, self._since = stage, done, None
            self._last = self._begin = now
        if self._since is None and done > self._first:
            self._since = now, done
        if now - self._last < self._interval:
            return
        self._last = now
        gone = timedelta(seconds=round(now - self._begin))
        at = f' {item}' if item else ''
        line = f'{stage} {int(done)}/{total}{at}: {gone} gone'
        if self._since is not None and done > self._since[1]:
            pace = (now - self._since[0]) / (done - self._since[1])
            left = timedelta(seconds=round(pace * (total - done)))
            line += f', about {left} left'
        self._say(line)


@HOOKS.register_module()
class ProgressHook(Hook):
    """Shows stage, layer and time left in the terminal.

    Where there is none, a line a minute goes to the log.

    Args:
        refresh (float): Updates a second. Defaults to 4.
        interval (float): Seconds between two lines. Defaults to 60.
    """

    priority = 'VERY_LOW'

    def __init__(self, refresh: float = 4.0, interval: float = 60.0) -> None:
        self._lines: ProgressLines | None = None
        self._interval = interval
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
        self, runner: Runner, stage: str, item: str, done: float, total: int
    ) -> None:
        """Moves the bar of a stage, making it when the stage is new.

        Args:
            runner (Runner): Its logger takes lines.
            stage (str): What is done.
            item (str): To which layer or unit.
            done (float): How many items are done, and which share of this
                one.
            total (int): How many there are.
        """
        if not self._bar.console.is_terminal:
            if self._lines is None:
                self._lines = ProgressLines(runner.logger.info, self._interval)
            self._lines(stage, item, done, total)
            return
        item = item if len(item) <= 24 else f'…{item[-23:]}'
        if self._task is None or stage != self._stage:
            self.close()
            self._bar.start()
            self._stage = stage
            self._task = self._bar.add_task(stage, total=total, item=item)
        self._bar.update(self._task, completed=done, total=total, item=item)

    def before_calib(self, runner: Runner, total: int) -> None:
        """Opens the bar of the calibration images."""
        self._images = total
        self.on_progress(runner, 'calibration', '', 0, total)

    def after_calib_iter(self, runner: Runner, batch_idx: int) -> None:
        """Counts one image."""
        done = batch_idx + 1
        self.on_progress(runner, 'calibration', '', done, self._images)

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
