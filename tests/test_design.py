# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""``docs/design.md`` is true: its Python runs, its picture is the house."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from promises import check_all

import mmdet_ptq
from mmdet_ptq.quantizers import SoftRounding
from mmdet_ptq.registry import ADAPTERS, PASSES, QUANTIZERS

ROOT = Path(__file__).parents[1]
PACKAGE = Path(mmdet_ptq.__file__).parent
PAGE = (ROOT / 'docs' / 'design.md').read_text()
REGISTRIES = (ADAPTERS, PASSES, QUANTIZERS)
FLOOR = re.compile(r'^(\d+) │ (.*)$', re.MULTILINE)


def blocks(page):
    """Python of a page: file names, '' for what is to be run, and text."""
    found = []
    for text in re.findall(r'^```python\n(.*?)^```', page, re.M | re.S):
        name = re.match(r'# (\w+\.py)\n', text)
        found.append((name[1] if name else '', text))
    return found


def rooms(page):
    """The picture: for each floor from the ground, name and whether built."""
    floors = {}
    for number, text in FLOOR.findall(page):
        floors[int(number)] = [
            (name.strip('()'), not name.startswith('('))
            for name in text.split(' · ')
        ]
    return [floors[i] for i in range(len(floors))]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the files of the page lie; what they register is forgotten."""
    for registry in REGISTRIES:
        registry.import_from_location()
    before = [dict(registry.module_dict) for registry in REGISTRIES]
    names = [name.removesuffix('.py') for name, _ in blocks(PAGE) if name]
    for name, text in blocks(PAGE):
        if name:
            text = text.replace('/path/to/mmdet_ptq', str(PACKAGE))
            (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in names:
        sys.modules.pop(name, None)
    for registry, known in zip(REGISTRIES, before, strict=True):
        registry.module_dict.clear()
        registry.module_dict.update(known)


def test_what_the_page_says_to_run_runs(folder):
    names = [name for name, _ in blocks(PAGE)]
    assert names.count('') == 5 and len(set(names)) == 6
    space = {'__name__': 'page'}
    for name, text in blocks(PAGE):
        if not name:
            exec(compile(text, 'design.md', 'exec'), space)
    # the last of them, of the target, is what the names mean now
    assert space['found'].count(space['kind']) > 20


def test_the_quantizer_of_the_page_keeps_the_promises(folder):
    import ternary

    make = ternary.TernaryQuantizer
    generator = torch.Generator().manual_seed(0)
    for shape in ((2, 6, 4, 4), (2, 6, 0, 4)):
        x = torch.randn(shape, generator=generator)
        check_all(make, 2, x)
        check_all(make, 2, torch.zeros(shape))
    q = make()
    assert q.fit(torch.tensor([[1.0, -3.0, 0.5, 0.2]]))
    # mean 1.175, so that 1 and 3 are large, and 2 is their mean
    assert q.codebook().tolist() == [[-2.0, 0.0, 2.0]]
    assert isinstance(q, SoftRounding)
    assert q.lower_codes(torch.tensor([[0.5, -1.0, 9.0]])).tolist() == [
        [1, 0, 1]
    ]


def test_the_picture_is_the_house():
    floors = runpy.run_path(str(ROOT / 'tests' / 'test_rooms.py'))['FLOORS']
    drawn = rooms(PAGE)
    assert [tuple(name for name, _ in floor) for floor in drawn] == [*floors]
    for name, built in (room for floor in drawn for room in floor):
        there = (PACKAGE / f'{name}.py').exists() or (PACKAGE / name).is_dir()
        assert built == there, f'{name}: in brackets if it is not there'


def test_files_that_the_page_names_exist():
    text = re.sub(r'^```python\n.*?^```', '', PAGE, flags=re.M | re.S)
    paths = re.findall(r'(?<![\w/.])(?:\w+/)+(?:\w+\.py)?', text)
    assert len(paths) > 40
    assert not [
        path
        for path in paths
        if 'NAME' not in path
        and not (ROOT / path).exists()
        and not (PACKAGE / path).exists()
    ]


def test_a_stale_picture_would_be_seen():
    assert rooms('1 │ b · (c)\n0 │ a\n') == [
        [('a', True)],
        [('b', True), ('c', False)],
    ]
    page = '```python\n# x.py\na\n```\n\n```python\nb\n```\n```\nc\n```\n'
    assert blocks(page) == [('x.py', '# x.py\na\n'), ('', 'b\n')]
