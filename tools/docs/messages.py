# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Errors in one line, for a table."""

import re
import traceback
from pathlib import Path


def without_folders(text: str) -> str:
    """A message in one line, without the folders of this machine."""
    return re.sub(r'/(?:[\w.+-]+/)+', '', ' '.join(text.split()))


def said(error: Exception) -> str:
    """An error in one line.

    Args:
        error (Exception): What was raised.

    Returns:
        str: Its type, file and line, and message.
    """
    at = traceback.extract_tb(error.__traceback__)[-1]
    first = without_folders((str(error).splitlines() or [''])[0])[:160]
    where = f'{Path(at.filename).name}:{at.lineno}'
    return f'{type(error).__name__} at {where}: {first}'
