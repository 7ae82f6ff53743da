# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Tables of pages."""

from collections.abc import Iterable, Sequence
from typing import Any


def markdown_table(head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """Rows of cells as a page has them."""
    lines = ['| ' + ' | '.join(map(str, r)) + ' |' for r in (head, *rows)]
    return '\n'.join([lines[0], '|---' * len(head) + '|', *lines[1:]])
