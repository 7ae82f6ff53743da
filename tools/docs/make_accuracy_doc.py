# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Puts the tables of docs/results into docs/accuracy.md.

A line ``<!-- PAGE: HEADING -->`` is followed by the table below that heading
of ``docs/results/PAGE.md``, and ``<!-- PAGE: means -->`` by the mean over
detectors, a row a method and a column a width; ``<!-- end -->`` closes it.
"""

import argparse
import json
import re
import sys
from itertools import dropwhile, takewhile
from pathlib import Path
from statistics import mean

RESULTS = Path('docs/results')
PLACE = re.compile(r'(<!-- (\w+): ([^\n]+) -->\n).*?(<!-- end -->)', re.DOTALL)


def table_below(page: str, heading: str) -> str:
    """The first table below a heading.

    Args:
        page (str): Markdown.
        heading (str): Without its marks.

    Returns:
        str: Lines of the table, each with its end.

    Raises:
        ValueError: If there is no such heading, or no table below it.
    """
    _, found, rest = page.partition(f'# {heading}\n')
    rest = rest.partition('\n#')[0]
    below = dropwhile(lambda line: line[:1] != '|', rest.splitlines())
    lines = list(takewhile(lambda line: line[:1] == '|', below))
    if not found or not lines:
        raise ValueError(f'no table below the heading {heading!r}')
    return ''.join(f'{line}\n' for line in lines)


def means(cells: list[dict]) -> str:
    """Mean AP over detectors, a row a method and a column a width.

    Args:
        cells (list[dict]): Of a suite in which all detectors were run.

    Returns:
        str: A table; the best of a width is bold.
    """
    widths = list(dict.fromkeys(c['bits'] for c in cells))
    found: dict[str, dict[str, list[float]]] = {}
    for c in cells:
        row = found.setdefault(c['recipe'], {})
        row.setdefault(c['bits'], []).append(c['quantized'])
    rows = {
        recipe: [round(mean(row[w]), 3) for w in widths]
        for recipe, row in found.items()
    }
    floats = {c['detector']: c['float'] for c in cells}
    whole = f'{mean(floats.values()):.3f}'
    best = [max(column) for column in zip(*rows.values(), strict=True)]
    lines = [
        f'| method | {" | ".join(widths)} |',
        '|---' * (len(widths) + 1) + '|',
        '| float |' + f' {whole} |' * len(widths),
    ]
    for recipe, row in rows.items():
        texts = [
            f'**{value:.3f}**' if value == top else f'{value:.3f}'
            for value, top in zip(row, best, strict=True)
        ]
        lines.append(f'| {recipe} | {" | ".join(texts)} |')
    return ''.join(f'{line}\n' for line in lines)


def filled(page: str, results: Path = RESULTS) -> str:
    """The page with the tables of now.

    Args:
        page (str): Markdown with places for tables.
        results (Path): Where their pages lie.

    Returns:
        str: The same, the places filled.
    """

    def fill(place: re.Match) -> str:
        head, name, heading, end = place.groups()
        if heading == 'means':
            text = means(json.loads((results / f'{name}.json').read_text()))
        else:
            text = table_below((results / f'{name}.md').read_text(), heading)
        return f'{head}{text}{end}'

    return PLACE.sub(fill, page)


def main() -> int:
    """Writes the page anew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--page', default='docs/accuracy.md')
    path = Path(parser.parse_args().page)
    path.write_text(filled(path.read_text()))
    return 0


if __name__ == '__main__':
    sys.exit(main())
