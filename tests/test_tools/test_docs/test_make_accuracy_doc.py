# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Tables of results on the page of accuracy."""

import json
from pathlib import Path

import pytest

from tools.docs.make_accuracy_doc import filled, means, table_below

ROOT = Path(__file__).parents[3]
PAGE = (
    '# name\n\ntext\n\n## w4a4\n\n| a |\n|---|\n| 1 |\n\n'
    'Mask AP:\n\n| b |\n|---|\n| 2 |\n\n## w2a4\n\nno\n'
)


def test_page_is_up_to_date():
    page = (ROOT / 'docs/accuracy.md').read_text()
    assert filled(page, ROOT / 'docs/results') == page
    assert page.count('<!-- end -->') > 8 and '|---' in page


def test_table_below_a_heading():
    assert table_below(PAGE, 'w4a4') == '| a |\n|---|\n| 1 |\n'
    for heading in ('w2a4', 'w8a8'):
        with pytest.raises(ValueError, match=heading):
            table_below(PAGE, heading)


def test_means_by_hand():
    cells = [
        dict(detector=d, recipe=r, bits=b, quantized=q, float=f)
        for d, r, b, q, f in (
            ('x', 'one', 'w4a4', 0.5, 0.6),
            ('y', 'one', 'w4a4', 0.3, 0.8),
            ('x', 'two', 'w4a4', 0.4, 0.6),
            ('y', 'two', 'w4a4', 0.5, 0.8),
        )
    ]
    assert means(cells) == (
        '| method | w4a4 |\n|---|---|\n| float | 0.700 |\n'
        '| one | 0.400 |\n| two | **0.450** |\n'
    )


def test_places_are_filled(tmp_path):
    cell = dict(detector='x', recipe='r', bits='b', quantized=0.5, float=0.6)
    (tmp_path / 'study.json').write_text(json.dumps([cell]))
    (tmp_path / 'study.md').write_text(PAGE)
    text = (
        'a\n<!-- study: w4a4 -->\nold\n<!-- end -->\nb\n'
        '<!-- study: means -->\n<!-- end -->\nc\n'
    )
    found = filled(text, tmp_path)
    assert found == (
        'a\n<!-- study: w4a4 -->\n| a |\n|---|\n| 1 |\n<!-- end -->\nb\n'
        f'<!-- study: means -->\n{means([cell])}<!-- end -->\nc\n'
    )
    assert filled(found, tmp_path) == found
