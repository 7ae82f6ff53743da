# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What holds for all pages."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGES = [
    *(ROOT / n for n in ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md')),
    *sorted((ROOT / 'docs').rglob('*.md')),
]


@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.stem)
def test_links_between_pages_exist(page):
    for link in re.findall(r'\]\(([^)#]+)\)', page.read_text()):
        if '://' not in link:
            assert (page.parent / link).exists(), link


def anchor(heading):
    """What a link writes after ``#``, as GitHub makes it."""
    kept = re.sub(r'[^\w\- ]', '', heading.strip().lower())
    return kept.replace(' ', '-')


def headings(text):
    """Anchors of a page; lines of code are none."""
    text = re.sub(r'^```.*?^```', '', text, flags=re.DOTALL | re.MULTILINE)
    return {anchor(h) for h in re.findall(r'^#+ (.*)$', text, re.MULTILINE)}


@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.stem)
def test_links_into_pages_exist(page):
    found = re.findall(r'\]\(([^)#:]*)#([^)]+)\)', page.read_text())
    for file, part in found:
        target = page.parent / file if file else page
        assert part in headings(target.read_text()), f'{file}#{part}'


@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.stem)
def test_commands_exist(page):
    """What a page says to run is there, as a module or as a file."""
    text = page.read_text()
    for name in re.findall(r'python -m (tools[\w.]*)', text):
        # FOLDER stands for one
        assert name.lower() != name or importlib.util.find_spec(name), name
    for path in re.findall(r'(?<![\w./])tools/[\w/]+\.(?:py|sh)', text):
        # MMDetection has tools of its own
        assert (ROOT / path).is_file() or path.endswith(
            ('tools/test.py', 'tools/train.py')
        ), path
