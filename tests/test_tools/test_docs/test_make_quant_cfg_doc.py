# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The page of quant_cfg is what its command makes now."""

import subprocess
import sys
from pathlib import Path

from tools.docs.make_quant_cfg_doc import document, markdown


def test_page_is_up_to_date(environment):
    out = subprocess.run(
        [sys.executable, '-m', 'tools.docs.make_quant_cfg_doc', '--check'],
        cwd=Path(__file__).parents[3],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert out.returncode == 0, out.stdout + out.stderr


def test_markdown_of_docstrings():
    text = '``x`` of :class:`~a.b.C`, :func:`f`::'
    assert markdown(text) == '`x` of `C`, `f`:'


def test_page_reads_alone():
    """No marks of Sphinx, and nothing that points to another place."""
    page = document()
    for words in (':class:', ':func:', ':meth:', '``x', 'See above'):
        assert words not in page


def rows():
    # made by itself here, the page has parts that other tests registered
    page = (Path(__file__).parents[3] / 'docs/quant_cfg.md').read_text()
    return [r for r in page.splitlines() if r.startswith('| `')]


def test_each_default_stands_once():
    """In its column; what is left of the meaning is never nothing."""
    assert len(rows()) > 50
    for row in rows():
        _, _, meaning, *_ = row.split('|')
        assert meaning.strip(), row
        assert 'Defaults to' not in meaning, row


def test_what_none_stands_for():
    found = [r for r in rows() if r.split('|')[3].startswith(' `None`')]
    found = [r for r in found if not r.startswith('| `group_size`')]
    assert len(found) > 20
    for row in found:
        meaning, default = row.split('|')[2:4]
        said = 'None' in meaning or 'By default' in meaning
        assert said or default.startswith(' `None`: '), row
