# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""One HTML file that needs nothing from outside and runs no script."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import PTQError
from .charts import budget
from .files import DATA, PAGE, RESULT, Run, read_run, write_text
from .markup import Html, esc, is_number, join, num, paragraph, tag
from .sections import accuracy, costs, lost, network, pictures, settings, units
from .sections.words import labels
from .svg import picture

STYLE = Path(__file__).with_name('style.css')
#: bytes that a page may have
LIMIT = 3_000_000
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
Draw = Callable[[Sequence[Run]], Html]
#: id, title and content of each section
SECTIONS: tuple[tuple[str, str, Draw], ...] = (
    ('warnings', 'Warnings and notes', settings.warned),
    ('accuracy', 'Accuracy', accuracy.accuracy),
    ('lost', 'What was lost', lost.lost),
    ('images', 'Images that changed most', pictures.pictures),
    ('bits', 'Bits of the network', network.bits),
    ('layers', 'Error of each layer', network.errors),
    ('values', 'Weights and inputs on their grids', network.values),
    ('units', 'Units', units.units),
    ('cost', 'Cost and size', costs.costs),
    ('time', 'Time', costs.time),
    ('settings', 'Settings, versions, command', settings.settings),
)


def page(
    runs: Sequence[Run], leave_out: Sequence[str] = ()
) -> tuple[str, list[str]]:
    """The report of one run, or of several side by side.

    Args:
        runs (Sequence[Run]): At least one.
        leave_out (Sequence[str]): Ids of sections without content.

    Returns:
        tuple[str, list[str]]: The file's text, and sentences on sections
        that could not be drawn.
    """
    problems: list[str] = []
    parts = []
    for key, title, draw in SECTIONS:
        if key in leave_out:
            body = paragraph('Left out: the page would be too large.')
        else:
            body = _drawn(key, draw, runs, problems)
        parts.append(tag('section', tag('h2', title), body, id=key))
    links = [tag('a', title, href=f'#{key}') for key, title, _ in SECTIONS]
    title = 'Quantization report: ' + ', '.join(run.name for run in runs)
    return (
        document(
            title,
            tag('header', tag('h1', 'Quantization report'), *_summary(runs)),
            tag('nav', join(links, ' ')),
            tag('main', *parts),
        ),
        problems,
    )


def document(title: str, *body: Html) -> str:
    """The text of a page that needs nothing from outside.

    Args:
        title (str): Escaped.
        *body (Html): Header, links, content.
    """
    head = tag(
        'head',
        Html('<meta charset="utf-8">'),
        Html(
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        ),
        Html(
            '<meta name="viewport" '
            'content="width=device-width, initial-scale=1">'
        ),
        tag('title', title),
        tag('style', Html(STYLE.read_text(encoding='utf-8'))),
    )
    text = tag('html', head, tag('body', *body), lang='en')
    return f'<!doctype html>\n{text}\n'


def _drawn(
    key: str, draw: Draw, runs: Sequence[Run], problems: list[str]
) -> Html:
    try:
        return draw(runs)
    except Exception as error:
        # files of runs may hold anything: the other sections are drawn
        problem = f'section {key!r}: {type(error).__name__}: {error}'
        problems.append(problem)
        return paragraph(
            f'This section could not be drawn, {problem}. A file of the run '
            'is of another form than expected.',
            cls='none',
        )


def _summary(runs: Sequence[Run]) -> list[Html]:
    found = []
    for name, run in zip(labels(runs), runs, strict=True):
        parts = [tag('b', name), f' of {run.part("config") or run.name}']
        metric = _main_metric(run)
        if metric:
            parts += [': ', metric]
        found.append(paragraph(*parts))
    return found


def _main_metric(run: Run) -> Html | None:
    """The first metric that is a number: detectors' main one."""
    for key, after in (run.part('quantized') or {}).items():
        if not is_number(after):
            continue
        before = run.part('float', key)
        if not is_number(before):
            return join([esc(key), ' ', tag('b', num(after))])
        change = f' ({num(after - before, "+.3f")})'
        return join(
            [esc(key), f' {num(before)} → ', tag('b', num(after)), change]
        )
    return None


def write_page(runs: Sequence[Run], path: str | Path) -> list[str]:
    """Writes the report, under 3 MB.

    Args:
        runs (Sequence[Run]): From :func:`read_run`.
        path (str | Path): Of the file.

    Returns:
        list[str]: Sentences on what could not be drawn.

    Raises:
        PTQError: If it cannot be written.
    """
    # what takes most room and says least goes first
    order = ('values', 'images', 'units', 'layers')
    left: list[str] = []
    text, problems = page(runs)
    while len(text.encode()) > LIMIT and len(left) < len(order):
        left.append(order[len(left)])
        text, problems = page(runs, left)
    if left:
        problems.append(
            f'sections left out to stay under {LIMIT / 1e6:g} MB: '
            + ', '.join(left)
        )
    if len(text.encode()) > LIMIT:
        advice = (
            'give fewer work dirs'
            if len(runs) > 1
            else 'the page of this run is too large even without its largest '
            f'sections; its numbers are in {RESULT} and {DATA}'
        )
        raise PTQError(
            f'{path}: the page has {len(text.encode()):,} bytes, more than '
            f'{LIMIT:,}; {advice}'
        )
    write_text(Path(path), text)
    return problems


def write_budget(found: dict[str, Any], path: str | Path) -> None:
    """Writes the chart of where bits go as a picture of its own.

    Args:
        found (dict): ``cost``, ``config``, ``recipe`` and ``bits`` of a
            result.
        path (str | Path): Of the SVG file.

    Raises:
        PTQError: If it cannot be written.
    """
    name = Path(found['config']).stem
    title = f'{name}, {found["recipe"]} {found["bits"]}'
    style = Html(STYLE.read_text(encoding='utf-8'))
    write_text(Path(path), picture(budget(found['cost'], title), title, style))


def write_report(folders: Sequence[str | Path], path: str | Path) -> list[str]:
    """Makes the report of one or several work dirs.

    Args:
        folders (Sequence[str | Path]): Work dirs.
        path (str | Path): Where to.

    Returns:
        list[str]: Warnings.

    Raises:
        PTQError: If a result cannot be read or the page not be written.
    """
    runs = [read_run(folder) for folder in folders]
    problems = [
        f'{run.name}: {problem}' for run in runs for problem in run.problems
    ]
    return problems + write_page(runs, path)


__all__ = [
    'PAGE',
    'SECTIONS',
    'page',
    'write_budget',
    'write_page',
    'write_report',
]
