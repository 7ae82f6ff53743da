# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What a report is made of: the files of runs."""

import json
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import PTQError

RESULT = 'ptq_result.json'
DATA = 'ptq_report.json'
PAGE = 'report.html'
#: of the form of DATA
VERSION = 1
AGAIN = 'run mmdet-ptq quantize again to have them'


@dataclass(frozen=True)
class Run:
    """One run, as its files tell of it.

    Attributes:
        name (str): Of its work dir.
        result (dict): The result file.
        data (dict): What was gathered for the report; empty if nothing was.
        problems (list[str]): What is wrong with the files, in sentences.
    """

    name: str
    result: dict[str, Any]
    data: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def part(self, *keys: str) -> Any:
        """A value of the result, None where it has none."""
        return _inner(self.result, keys)

    def gathered(self, *keys: str) -> Any:
        """A value of what was gathered, None where there is none."""
        return _inner(self.data, keys)


def _inner(found: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        if not isinstance(found, dict):
            return None
        found = found.get(key)
    return found


def read_run(folder: str | Path) -> Run:
    """Reads the files of one run.

    Args:
        folder (str | Path): Its work dir.

    Returns:
        Run: What was gathered for the report may be missing or of another
        version; ``problems`` says so.

    Raises:
        PTQError: If there is no result file, or it cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise PTQError(f'{folder} is no folder; give the work dir of a run')
    path = folder / RESULT
    if not path.exists():
        raise PTQError(
            f'{folder} has no {RESULT}; give the work dir of a run of '
            'mmdet-ptq quantize'
        )
    result = _read(path)
    if not isinstance(result.get('quantized'), dict):
        raise PTQError(
            f'{path} is no result of mmdet-ptq: it has no metrics '
            "('quantized')"
        )
    data, problem = _gathered(folder / DATA, result)
    name = folder.resolve().name
    return Run(name, result, data, [problem] if problem else [])


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise PTQError(f'{path} cannot be read: {error}') from error
    except ValueError as error:
        raise PTQError(
            f'{path} is no whole JSON file ({error}); it was cut off or '
            'changed: run mmdet-ptq quantize again'
        ) from error
    if not isinstance(found, dict):
        raise PTQError(f'{path} holds no JSON object')
    return found


def _gathered(path: Path, result: dict) -> tuple[dict[str, Any], str]:
    """What is in the file, and why it is not used, '' if it is."""
    if not path.exists():
        return {}, ''
    try:
        data = _read(path)
    except PTQError as error:
        return {}, f'{error}; sections that need it are left out'
    if data.get('version') != VERSION:
        return {}, (
            f'{path.name} is of version {data.get("version")!r}, this '
            f'package reads {VERSION}; sections that need it are left out: '
            f'{AGAIN}'
        )
    if data.get('started') != result.get('started'):
        return {}, (
            f'{path.name} is of another run than {RESULT}; sections that '
            f'need it are left out: {AGAIN}'
        )
    return data, ''


def write_text(path: Path, text: str) -> None:
    """Writes a file; one there before survives a failure.

    Args:
        path (Path): Of the file.
        text (str): Its content.

    Raises:
        PTQError: If it cannot be written.
    """
    temporary = path.with_suffix('.tmp')
    try:
        temporary.write_text(text, encoding='utf-8')
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise PTQError(f'cannot write {path}: {error.strerror}') from error


def write_data(folder: Path, data: dict[str, Any], started: str) -> None:
    """Writes what was gathered, beside the result of the same run.

    Args:
        folder (Path): The work dir.
        data (dict): Plain types without NaN.
        started (str): ``started`` of the result.

    Raises:
        PTQError: If it cannot be written.
    """
    whole = dict(version=VERSION, started=started, **data)
    write_text(folder / DATA, json.dumps(whole, allow_nan=False))
