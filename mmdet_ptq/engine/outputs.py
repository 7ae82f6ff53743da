# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Artefact, result and config of one run lie together, or not at all."""

import json
import os
import shutil
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import is_main_process

from ..errors import PTQError
from ..report import DATA, PAGE, RESULT
from .work_config import work_config

UNFINISHED = 'unfinished'


class Outputs:
    """Files of a run in its work dir.

    Where an earlier artefact lies, a new run writes into the folder
    ``unfinished`` until it has an artefact of its own. So a run that is
    stopped leaves the earlier set whole.

    Args:
        work_dir (str | Path): The work dir.
        artefact (str): File name of the artefact.
        config (str): File name of the config.
    """

    def __init__(
        self, work_dir: str | Path, artefact: str, config: str
    ) -> None:
        self.folder = Path(work_dir)
        self.artefact = self.folder / artefact
        self.config = config
        self.aside = self.folder / UNFINISHED
        self.place = self.aside if self.artefact.exists() else self.folder

    @property
    def results(self) -> list[Path]:
        """Result files that an earlier start of this run may have left."""
        return [self.aside / RESULT, self.folder / RESULT]

    @property
    def result(self) -> Path:
        """The result file, where it is written now."""
        return self.place / RESULT

    def begin(self, cfg: Config, resume: bool) -> None:
        """Writes the config, now that the run starts.

        Args:
            cfg (Config): Of the run.
            resume (bool): Whether to keep what was left unfinished.

        Raises:
            PTQError: If it cannot be written.
        """
        if not is_main_process():
            return
        try:
            if not resume:
                shutil.rmtree(self.aside, ignore_errors=True)
            self.place.mkdir(exist_ok=True)
            work_config(cfg).dump(self.place / self.config)
        except OSError as error:
            raise PTQError(
                f'cannot write the config to {self.place}: {error}'
            ) from error

    def settle(self) -> None:
        """Puts result and config beside the artefact that was just saved.

        Raises:
            PTQError: If they cannot be moved.
        """
        earlier = written_config(self.folder)
        try:
            for name in (self.config, RESULT):
                if (self.place / name).exists():
                    os.replace(self.place / name, self.folder / name)
            if earlier is not None and earlier.name != self.config:
                earlier.unlink(missing_ok=True)
            # of an earlier run; this one makes its own when it ends
            for name in (DATA, PAGE):
                (self.folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise PTQError(
                f'cannot move {self.place} to {self.folder}: {error}'
            ) from error
        self.place = self.folder
        shutil.rmtree(self.aside, ignore_errors=True)


def written_config(folder: Path) -> Path | None:
    """The config that the run of a result file wrote beside it.

    Args:
        folder (Path): With the result file.

    Returns:
        Path, optional: None if it is not known, or if it is the very file
        that the run was started with.
    """
    try:
        source = json.loads((folder / RESULT).read_text())['config']
        written = folder / Path(source).name
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not there, or not of ours
    if not source or written.resolve() == Path(source).resolve():
        return None
    return written
