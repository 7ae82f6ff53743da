# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Every recipe has its paragraph and its picture."""

import re
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from mmdet_ptq.quant_cfg import recipe_names
from tools.docs import make_method_pictures as tool
from tools.docs.methods import PICTURES

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / 'docs' / 'methods.md').read_text()
FOLDER = ROOT / 'docs' / 'pictures' / 'methods'


def test_every_recipe_is_told():
    named = set(re.findall(r'`(\w+)`', PAGE))
    assert set(recipe_names()) <= named


def test_every_section_has_its_picture():
    sections = re.split(r'^### ', PAGE, flags=re.MULTILINE)[1:]
    drawn = [
        re.findall(r'\]\(pictures/methods/(\w+)\.svg\)', s) for s in sections
    ]
    assert [len(one) for one in drawn] == [1] * len(sections)
    assert sorted(p for one in drawn for p in one) == sorted(PICTURES)
    assert {f.stem for f in FOLDER.glob('*.svg')} == set(PICTURES)
    for section, (picture,) in zip(sections, drawn, strict=True):
        # f_lbq has a recipe for each solver
        assert f'`{picture}' in section.splitlines()[0]


@pytest.mark.parametrize('name', PICTURES)
def test_it_can_be_drawn(name):
    figure = PICTURES[name]()
    assert isinstance(figure, Figure) and figure.axes
    assert PICTURES[name].__doc__


def test_command(tmp_path, monkeypatch):
    """The picture in the repository, again."""
    args = ['tool', '--only', 'f_lbq', '--out', str(tmp_path)]
    monkeypatch.setattr(sys, 'argv', args)
    assert tool.main() == 0
    (made,) = tmp_path.iterdir()
    assert made.name == 'f_lbq.svg'
    assert '4.00 bits' in made.read_text()
    assert '4.00 bits' in (FOLDER / 'f_lbq.svg').read_text()
