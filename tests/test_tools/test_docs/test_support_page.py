# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The page of families counts right."""

from tools.docs.examine import empty_row
from tools.docs.support_page import FOUND, to_markdown


def test_markdown_counts():
    row = empty_row(
        config='a.py',
        built=True,
        float_ok=True,
        quantized=True,
        predicts=True,
        layers=3,
        left_float={'why': 2},
        cosine=0.995,
    )
    rows = {
        'good': row,
        'sort': dict(row, cosine=0.5, bfloat16=0.7),
        'no': dict(row, float_ok=False, predicts=False, why='Error: x'),
        'ssd': dict(row, size=(16, 8)),
    }
    text = to_markdown(rows, 7, 'cmd', (8, 8))
    assert (
        '4 of 7 families were run. **3** build' in text
        and '**2** of these (66.7 %)' in text
    )
    assert '| ssd | a.py | 16 x 8 |' in text
    # a row of an earlier version claims no size
    assert '| good | a.py |  |' in text and 'an earlier version' in text
    end = text[text.index('## Exceptions') :]
    assert '- **no**: `Error: x`.' in end
    assert 'Cosine 0.5000; the float model has 0.7000 in bfloat16.' in end
    assert FOUND['sort'] in end
    # words about a family that passes are not printed
    assert FOUND['ssd'] not in end and '**good**' not in end
    assert '## Exceptions' not in to_markdown({'good': row}, 7, 'cmd', (8, 8))
