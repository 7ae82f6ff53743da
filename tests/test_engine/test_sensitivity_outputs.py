# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""A page, rules, and a table of what was measured."""

import io

from rich.console import Console

from mmdet_ptq.engine.sensitivity_outputs import (
    print_worst,
    rows_of,
    write_outputs,
)
from mmdet_ptq.quant_cfg import load_recipe, parse_quant_cfg


def score(value):
    return dict(score=value, error=value)


def found(**given):
    """What a run leaves, of two layers and a role."""
    scores = {
        'all': 1.0,
        'alone/weight/a': 0.1,
        'alone/act/a': 0.2,
        'without/weight/a': 0.9,
        'without/act/a': 0.7,
        'alone/weight/{b,c}': 0.6,
        'without/weight/{b,c}': 0.2,
        'alone/weight/@neck': 0.7,
        'without/weight/@neck': 0.25,
    }
    return {
        **dict(
            about=dict(title='uniform w4a4', config='a.py', path='a.pth'),
            parts={'a': ['a'], '{b,c}': ['b', 'c'], '@neck': ['a', 'b']},
            scores=dict(output={k: score(v) for k, v in scores.items()}),
            layers=dict(
                a=dict(own=0.01, received=0.0, total=0.01),
                b=dict(own=0.02, received=0.3, total=0.4),
                c=dict(own=0.05, received=None, total=None),
            ),
        ),
        **given,
    }


RULES = [dict(match=['b', 'c'], weight=dict(bits=8))]
SUGGESTED = dict(
    rules=RULES,
    layers=['b', 'c'],
    words='keep these 2 layers at 8 bits',
    quant_cfg=dict(recipe='uniform', bits='w4a4', rules=RULES),
    before=1.0,
    after=0.39,
    mb_before=2.0,
    mb_after=2.08,
)


def test_the_worst_first_and_roles_at_the_end():
    rows = rows_of(found(), 'output')
    assert [row['name'] for row in rows] == ['{b,c}', 'a', '@neck']
    assert rows[0]['spared_weight'] == 0.8 and rows[0]['act'] is None
    # of several layers the largest error that is known
    assert (rows[0]['own'], rows[0]['received']) == (0.05, 0.3)


def test_files_and_words(tmp_path):
    told = write_outputs(
        tmp_path,
        found(
            suggestion=dict(output=SUGGESTED),
            check=dict(
                output=dict(
                    pairs={'a': [0.3, 0.01], '{b,c}': [0.6, 0.02]},
                    spearman=1.0,
                )
            ),
        ),
        'output',
    )
    words = '\n'.join(told)
    assert 'Keep these 2 layers at 8 bits: output score −61 %, size +4 %' in (
        words
    )
    assert 'rank correlation with the loss of the metric is 1.00' in words
    assert str(RULES) in words
    path = tmp_path / 'sensitivity_rules.py'
    config = parse_quant_cfg(load_recipe(str(path)))
    assert config.rules[-1] == RULES[0] and str(config.bits) == 'w4a4'
    assert '<svg' in (tmp_path / 'sensitivity.html').read_text()


def test_nothing_to_suggest(tmp_path):
    told = write_outputs(tmp_path, found(), 'output')
    assert len(told) == 1 and 'sensitivity.html' in told[0]
    assert not (tmp_path / 'sensitivity_rules.py').exists()


def test_table_of_layers():
    out = io.StringIO()
    print_worst(Console(file=out, width=80), found(), 'output')
    said = out.getvalue()
    assert 'uniform w4a4: output 1, of single layers the worst 2' in said
    lines = [line.split() for line in said.splitlines()]
    assert ['{b,c}', '0.6', '-', '0.8', '5.00%', '30.00%'] in lines
    assert ['a', '0.1', '0.2', '0.4', '1.00%', '0.00%'] in lines
    assert '@neck' not in said
