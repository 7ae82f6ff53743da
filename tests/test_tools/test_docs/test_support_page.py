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
    text = to_markdown({'good': row}, 7, 'cmd', (8, 8))
    assert '##' not in text and 'PTQRunner' not in text


def test_runner_and_optional_packages():
    row = empty_row(config='a.py', built=True, float_ok=True, cosine=0.999)
    row.update(quantized=True, predicts=True, runner='yes', detected=7)
    rows = {
        'good': dict(row, replaced='CocoMetric for VOCMetric'),
        'blank': dict(row, detected=0),
        'bad': dict(row, runner='the dataset has 1 class', detected=None),
        'plain': dict(row, runner=''),
        'text': dict(row, extras={'lap': '1.2'}, without='Error: a | b'),
    }
    text = to_markdown(rows, 5, 'cmd', (8, 8))
    assert '**3** of 4 that were tried do.' in text
    assert '| bad | a.py |  | yes | yes | yes | no |' in text
    assert '| plain | a.py |  | yes | yes | yes |  |' in text
    assert '- **bad**: `the dataset has 1 class`.' in text
    assert '- **good**: CocoMetric for VOCMetric.' in text
    assert text.count('- **blank**') == 1
    assert 'run again with lap 1.2.' in text
    assert '| text | `Error: a / b` | yes | yes | yes | yes | yes |' in text
    assert '## Exceptions' not in text
