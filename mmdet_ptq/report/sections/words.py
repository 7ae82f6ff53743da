# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What sections say of runs."""

from collections import Counter
from collections.abc import Sequence

from ..files import Run
from ..markup import Html, paragraph


def labels(runs: Sequence[Run]) -> list[str]:
    """A name of each run: recipe and bits, and the work dir where needed.

    Where that is the same too, its number in the order of the command.
    """
    found = [
        f'{run.part("recipe") or "recipe"} {run.part("bits") or ""}'.strip()
        for run in runs
    ]
    for more in ([run.name for run in runs], range(1, len(runs) + 1)):
        many = Counter(found)
        found = [
            text if many[text] == 1 else f'{text} ({word})'
            for text, word in zip(found, more, strict=True)
        ]
    return found


def missing(run: Run, key: str) -> str:
    """Why a run has nothing for a section, a sentence."""
    if not run.data:
        return (
            'Nothing was gathered for this part: the run had --no-report, or '
            'was made by an older version.'
        )
    why = run.gathered('why', key)
    return f'{why or "Nothing was gathered for this part"}.'


def absent(runs: Sequence[Run], key: str) -> list[Html]:
    """A paragraph for each run that has nothing for a section."""
    many = len(runs) > 1
    return [
        paragraph(f'{name}: ' if many else '', missing(run, key), cls='none')
        for name, run in zip(labels(runs), runs, strict=True)
        if not run.gathered(key)
    ]


def with_part(runs: Sequence[Run], key: str) -> list[tuple[str, Run]]:
    """Names and runs that have something for a section."""
    return [
        (name, run)
        for name, run in zip(labels(runs), runs, strict=True)
        if run.gathered(key)
    ]
