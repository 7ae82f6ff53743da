# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The resume file: what is needed to go on after a kill at any point."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from ..errors import PTQError


def write_atomic(obj: Any, path: str | Path) -> None:
    """Saves an object so that a failure leaves the old file in place.

    Args:
        obj (Any): Anything ``torch.save`` takes.
        path (str | Path): Where to.

    Raises:
        PTQError: If the disk is full or the folder is not writable.
    """
    path = Path(path)
    # the archive inside takes its name from the file name, so the folder is
    # the temporary part; the next save removes what a kill has left in it
    temporary = path.parent / f'.save_{path.name}'
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        torch.save(obj, temporary / path.name)
        with open(temporary / path.name, 'rb') as file:
            os.fsync(file.fileno())
        os.replace(temporary / path.name, path)
    except (OSError, RuntimeError) as error:
        kept = ' The file there before is unchanged.' if path.exists() else ''
        raise PTQError(
            f'cannot save {path}: {error}.{kept} Free some space, '
            'or choose another folder (of a run: --work-dir)'
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class ResumeStore:
    """Progress of a quantization in one file for each rank.

    Args:
        path (str | Path): The file.
        fingerprint (str): Identifies checkpoint, configuration and world
            size; progress of anything else is not used.
    """

    def __init__(self, path: str | Path, fingerprint: str) -> None:
        self.path = Path(path)
        self.fingerprint = fingerprint

    def load(self) -> dict | None:
        """The saved progress, None if there is none of this run."""
        if not self.path.is_file():
            return None
        try:
            saved = torch.load(
                self.path, map_location='cpu', weights_only=True
            )
        except Exception as error:
            raise PTQError(
                f'cannot read the resume file {self.path} '
                f'({type(error).__name__}). Delete it, or run without '
                '--resume.'
            ) from error
        if saved.pop('fingerprint', None) != self.fingerprint:
            return None
        return saved

    def save(self, progress: dict) -> None:
        """Replaces the file."""
        write_atomic({'fingerprint': self.fingerprint, **progress}, self.path)

    def clear(self) -> None:
        """Removes the file once the artefact is written."""
        self.path.unlink(missing_ok=True)
