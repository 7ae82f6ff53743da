# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The grid of accuracy runs, with the runs themselves replaced."""

import importlib.util
import json
import sys
from pathlib import Path
from unittest.mock import ANY

import pytest

from mmdet_ptq.quant_cfg import parse_quant_cfg

ROOT = Path(__file__).resolve().parents[2]
BUDGET = dict(iters=7, images=5, global_every=3, correction=4)


@pytest.fixture
def tool(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location(
        'benchmark_accuracy', ROOT / 'tools' / 'benchmark_accuracy.py'
    )
    monkeypatch.syspath_prepend(ROOT / 'tools')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.ran = []
    module.points = {}

    def run_cell(cell, budget, work, threads):
        module.ran.append(cell)
        if module.points.get(cell) == 'fails':
            raise RuntimeError(f'{cell}: exit code 1')
        return dict(
            zip(('detector', 'recipe', 'bits', 'seed'), cell, strict=True),
            quantized=module.points.get(cell, 0.5),
            seconds=1.0,
            settings=dict(budget, threads=threads),
        )

    def main(*args):
        module.ran.clear()
        monkeypatch.setattr(
            sys, 'argv', ['tool', 's3', '--out', str(tmp_path), *args]
        )
        return module.main()

    monkeypatch.setattr(module, 'run_cell', run_cell)
    # the data set is not made where only these tests run
    monkeypatch.setattr(
        module, 'cell_hash', lambda cell, budget: f'{cell} {budget}'
    )
    module.run_main, module.monkeypatch = main, monkeypatch
    module.path = tmp_path / 's3.json'
    return module


def test_every_cell_of_every_suite_is_a_valid_config(tool):
    cells = {c[1:3] for suite in tool.SUITES.values() for c in suite}
    for method, bits in cells:
        cfg = parse_quant_cfg(tool.quant_cfg(method, bits, 2, BUDGET))
        assert cfg.calibration.seed == 2
        assert cfg.calibration.num_samples == 5


def reconstructions(tool, method):
    cfg = parse_quant_cfg(tool.quant_cfg(method, 'w2a4', 0, BUDGET))
    return [p for p in cfg.passes if p['type'] == 'Reconstruct']


def test_budget_of_a_cell(tool):
    """The global loss is thinned only where there is one."""
    for method, every in (('brecq', [None] * 2), ('reg_ptq', [3])):
        found = reconstructions(tool, method)
        assert [p['iters'] for p in found] == [7] * len(every)
        assert [p.get('global_every') for p in found] == every
    assert reconstructions(tool, 'uniform') == []
    for method, steps in (('qdrop', None), ('pd_quant', dict(iters=4))):
        (found,) = reconstructions(tool, method)
        assert found.get('distribution_correction') == steps


def test_variants_differ_in_what_they_are_named_after(tool):
    (filtered,) = reconstructions(tool, 'c=0.0002_i=0.1')
    fisher, loss = filtered['losses']
    assert fisher['of'] == loss
    assert (loss['theta_c'], loss['theta_i']) == (2e-4, 0.1)
    (local,) = reconstructions(tool, 'local')
    assert [one['type'] for one in local['losses']] == ['FisherLoss']
    (recipe,) = reconstructions(tool, 'reg_ptq')
    (undamped,) = reconstructions(tool, 'undamped')
    assert fisher['damping'] == recipe['losses'][0]['damping'] > 0
    rows = dict(type='DetectionLoss', topk_per_level=None)
    assert local['losses'] == [dict(recipe['losses'][0], of=rows)]
    # nothing but the filters and the global loss differs
    assert dict(loss, **rows) == loss and fisher == dict(
        local['losses'][0], of=loss
    )
    # nothing but the damping differs
    assert undamped['losses'] == [dict(fisher, damping=0.0), loss]
    rules = {
        m: tool.quant_cfg(m, 'w2a4', 0, BUDGET).get('rules', [])
        for m in ('uniform_heads', 'llaq_heads', 'float_heads')
    }
    head, prediction = rules['uniform_heads']
    assert prediction == dict(match='@prediction', skip=True)
    assert head['weight']['type'] == 'UniformQuantizer'
    assert rules['llaq_heads'] == []
    assert rules['float_heads'][0]['skip'] is True
    assert rules['float_heads'][0]['match'] == ['@rpn', '@head', '@mask']


def test_finished_cells_are_kept(tool):
    assert tool.run_main('--jobs', '2') == 0
    everything = tool.SUITES['s3']
    assert sorted(tool.ran) == sorted(everything)
    # in the order of the suite, whatever finished first
    cells = json.loads(tool.path.read_text())
    assert [tool.key_of(c) for c in cells] == everything
    assert tool.run_main() == 0 and tool.ran == []
    one = ['--cell', 'detr,qdrop,w3a3,0']
    assert tool.run_main(*one) == 0 and tool.ran == []
    assert tool.run_main(*one, '--fresh') == 0
    assert tool.ran == [('detr', 'qdrop', 'w3a3', 0)]


def test_a_failed_cell_is_told_and_run_again(tool, capsys):
    bad = ('detr', 'qdrop', 'w3a3', 0)
    tool.points[bad] = 'fails'
    assert tool.run_main() == 1
    assert f'{bad}: exit code 1' in capsys.readouterr().out
    assert len(json.loads(tool.path.read_text())) == len(tool.SUITES['s3']) - 1
    del tool.points[bad]
    assert tool.run_main() == 0 and tool.ran == [bad]


def test_changed_settings_run_again(tool):
    tool.run_main()
    before = tool.path.read_text()
    assert tool.run_main('--budget', 'gpu') == 0
    assert len(tool.ran) == len(tool.SUITES['s3'])
    # beside the others
    assert tool.path.read_text() == before
    gpu = json.loads(tool.path.with_name('s3_gpu.json').read_text())
    assert gpu[0]['settings'] == dict(tool.BUDGETS['gpu'], threads=ANY)
    tool.run_main()
    tool.monkeypatch.setitem(tool.BUDGETS, 'cpu', dict(BUDGET, iters=8))
    assert tool.run_main() == 0
    assert len(tool.ran) == len(tool.SUITES['s3'])


@pytest.mark.parametrize('same', [True, False])
def test_changed_code_is_checked_on_some_cells(tool, monkeypatch, same):
    tool.run_main()
    monkeypatch.setattr(tool, 'code_hash', lambda: 'other code')
    if not same:
        tool.points = {c: 0.25 for c in tool.SUITES['s3']}
    assert tool.run_main('--spot-check', '2') == 0
    assert len(tool.ran) == (2 if same else len(tool.SUITES['s3']))
    assert len(set(tool.ran)) == len(tool.ran)
    cells = json.loads(tool.path.read_text())
    assert {c['code'] for c in cells} == {'other code'}
    assert {c['quantized'] for c in cells} == {0.5 if same else 0.25}
    assert tool.run_main() == 0 and tool.ran == []


def test_changed_code_runs_everything_again(tool, monkeypatch):
    tool.run_main()
    monkeypatch.setattr(tool, 'code_hash', lambda: 'other code')
    assert tool.run_main() == 0
    assert len(tool.ran) == len(tool.SUITES['s3'])


def test_a_cell_of_another_suite(tool, monkeypatch, capsys):
    """The same settings of the same code are not run twice."""
    cell = ('detr', 'qdrop', 'w3a3', 0)
    monkeypatch.setattr(
        tool, 'cell_hash', lambda c, b: 'h' if c == cell else f'{c}'
    )
    path = tool.path.with_name('table1.json')
    known = dict(
        detector='detr',
        recipe='another name',
        bits='w3a3',
        seed=0,
        quantized=0.75,
        float=0.8,
        hash='h',
        settings=BUDGET,
    )
    path.write_text(json.dumps([dict(known, code='old')]))
    tool.run_main('--cell', ','.join(map(str, cell)))
    assert tool.ran == [cell]
    tool.path.unlink()
    path.write_text(json.dumps([dict(known, code=tool.code_hash())]))
    tool.run_main('--cell', ','.join(map(str, cell)))
    assert tool.ran == []
    (found,) = json.loads(tool.path.read_text())
    assert tool.key_of(found) == cell and found['suite'] == 'table1'
    assert found['quantized'] == 0.75
    assert 'from table1' in capsys.readouterr().out
    tool.run_main('--cell', ','.join(map(str, cell)), '--fresh')
    assert tool.ran == [cell]


def test_table_is_written_again(tool, capsys):
    with pytest.raises(SystemExit):
        tool.run_main('--no-run')
    assert 's3.json has no finished cell' in capsys.readouterr().err
    tool.run_main('--methods', 'qdrop')
    table = tool.path.with_suffix('.md')
    before = table.read_text(), tool.path.read_text()
    table.unlink()
    assert tool.run_main('--no-run') == 0 and tool.ran == []
    assert (table.read_text(), tool.path.read_text()) == before


def test_parts_of_a_suite(tool, capsys):
    tool.run_main('--bits', 'w3a3', '--methods', 'qdrop', 'reg_ptq')
    assert sorted(tool.ran) == [
        ('detr', 'qdrop', 'w3a3', 0),
        ('detr', 'reg_ptq', 'w3a3', 0),
    ]
    with pytest.raises(SystemExit):
        tool.run_main('--methods', 'brecq')
    assert 's3 has no brecq' in capsys.readouterr().err


def test_table_of_two_seeds(tool):
    cells = [
        dict(
            detector=d,
            recipe=m,
            bits='w2a4',
            seed=seed,
            float=0.6,
            quantized=ap,
            settings=BUDGET,
        )
        for d, m, seed, ap in (
            ('a', 'x', 0, 0.5),
            ('a', 'x', 1, 0.52),
            ('b', 'x', 0, 0.3),
            ('b', 'x', 1, 0.3),
            ('a', 'y', 0, 0.1),
        )
    ]
    text = tool.to_markdown('name', cells, 'the command')
    assert '| method | a | b | mean |' in text
    assert '| float | 0.600 | 0.600 | 0.600 |' in text
    assert '| x | 0.510 ± 0.010 | 0.300 ± 0.000 | 0.405 |' in text
    assert '| y | 0.100 |  |  |' in text
    assert '5 calibration images, 7 steps a unit' in text


def test_methods_over_all_widths(tool):
    aps = {
        ('a', 'w2a4'): dict(uniform=0.2, x=0.5, y=0.497),
        ('a', 'w4a4'): dict(uniform=0.6, x=0.595, y=0.599),
        ('b', 'w4a4'): dict(uniform=0.1, x=0.3),  # y was not run
    }
    cells = [
        dict(
            detector=d,
            recipe=m,
            bits=bits,
            seed=0,
            float=0.7,
            quantized=ap,
            settings=BUDGET,
        )
        for (d, bits), of_methods in aps.items()
        for m, ap in of_methods.items()
    ]
    text = tool.to_markdown('name', cells, 'the command')
    assert 'Of 2 places' in text
    assert '| uniform | 1 | 1 | 0.000 |' in text
    assert '| x | 1 | 1 | -0.005 |' in text
    assert '| y | 2 | 0 | -0.001 |' in text
    # nothing to compare with
    assert 'Over all' not in tool.to_markdown('name', cells[1:3], 'command')
    # one leaves more float than the other
    pair = [cells[0], dict(cells[0], recipe='attention_float')]
    assert 'Over all' not in tool.to_markdown('name', pair, 'command')


@pytest.mark.parametrize('text', ['a,b,c', 'a,b,c,x', 'a,b,c,0,1'])
def test_bad_cell(tool, text, capsys):
    with pytest.raises(SystemExit):
        tool.run_main('--cell', text)
    assert 'detector,recipe,bits,seed' in capsys.readouterr().err
