# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The grid of accuracy runs, with the runs themselves replaced."""

import json
from unittest.mock import ANY

import pytest

from tools.accuracy import benchmark_accuracy as grid
from tools.accuracy.cells import key_of
from tools.accuracy.suites import BUDGETS, SUITES

BUDGET = dict(iters=7, images=5, global_every=3, correction=4)
CELLS = SUITES['s3']


class Tool:
    """Runs the suite s3 into a folder; a cell takes no time.

    Attributes:
        ran (list[tuple]): Cells of the last call.
        points (dict): What cells come to, if not 0.5; or ``'fails'``.
    """

    def __init__(self, folder):
        self.folder, self.path = folder, folder / 's3.json'
        self.ran, self.points = [], {}

    def run_cell(self, cell, budget, work, threads):
        self.ran.append(cell)
        if self.points.get(cell) == 'fails':
            raise RuntimeError(f'{cell}: exit code 1')
        return dict(
            zip(('detector', 'recipe', 'bits', 'seed'), cell, strict=True),
            quantized=self.points.get(cell, 0.5),
            seconds=1.0,
            settings=dict(budget, threads=threads),
        )

    def run_main(self, *args):
        self.ran.clear()
        words = ['s3', '--out', str(self.folder), *args]
        return grid.main(words, self.run_cell)


@pytest.fixture
def tool(tmp_path, monkeypatch):
    # the data set is not made where only these tests run
    monkeypatch.setattr(
        grid, 'cell_hash', lambda cell, budget: f'{cell} {budget}'
    )
    return Tool(tmp_path)


def test_finished_cells_are_kept(tool):
    assert tool.run_main('--jobs', '2') == 0
    assert sorted(tool.ran) == sorted(CELLS)
    # in the order of the suite, whatever finished first
    cells = json.loads(tool.path.read_text())
    assert [key_of(c) for c in cells] == CELLS
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
    assert len(json.loads(tool.path.read_text())) == len(CELLS) - 1
    del tool.points[bad]
    assert tool.run_main() == 0 and tool.ran == [bad]


def test_changed_settings_run_again(tool, monkeypatch):
    tool.run_main()
    before = tool.path.read_text()
    assert tool.run_main('--budget', 'gpu') == 0
    assert len(tool.ran) == len(CELLS)
    # beside the others
    assert tool.path.read_text() == before
    gpu = json.loads(tool.path.with_name('s3_gpu.json').read_text())
    assert gpu[0]['settings'] == dict(BUDGETS['gpu'], threads=ANY)
    tool.run_main()
    monkeypatch.setitem(BUDGETS, 'cpu', dict(BUDGET, iters=8))
    assert tool.run_main() == 0
    assert len(tool.ran) == len(CELLS)


@pytest.mark.parametrize('same', [True, False])
def test_changed_code_is_checked_on_some_cells(tool, monkeypatch, same):
    tool.run_main()
    monkeypatch.setattr(grid, 'code_hash', lambda: 'other code')
    if not same:
        tool.points = {c: 0.25 for c in CELLS}
    assert tool.run_main('--spot-check', '2') == 0
    assert len(tool.ran) == (2 if same else len(CELLS))
    assert len(set(tool.ran)) == len(tool.ran)
    cells = json.loads(tool.path.read_text())
    assert {c['code'] for c in cells} == {'other code'}
    assert {c['quantized'] for c in cells} == {0.5 if same else 0.25}
    assert tool.run_main() == 0 and tool.ran == []


def test_changed_code_runs_everything_again(tool, monkeypatch):
    tool.run_main()
    monkeypatch.setattr(grid, 'code_hash', lambda: 'other code')
    assert tool.run_main() == 0
    assert len(tool.ran) == len(CELLS)


def test_a_cell_of_another_suite(tool, monkeypatch, capsys):
    """The same settings of the same code are not run twice."""
    cell = ('detr', 'qdrop', 'w3a3', 0)
    monkeypatch.setattr(
        grid, 'cell_hash', lambda c, b: 'h' if c == cell else f'{c}'
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
    path.write_text(json.dumps([dict(known, code=grid.code_hash())]))
    tool.run_main('--cell', ','.join(map(str, cell)))
    assert tool.ran == []
    (found,) = json.loads(tool.path.read_text())
    assert key_of(found) == cell and found['suite'] == 'table1'
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


@pytest.mark.parametrize('text', ['a,b,c', 'a,b,c,x', 'a,b,c,0,1'])
def test_bad_cell(tool, text, capsys):
    with pytest.raises(SystemExit):
        tool.run_main('--cell', text)
    assert 'detector,recipe,bits,seed' in capsys.readouterr().err
