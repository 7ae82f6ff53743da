# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The units of a backbone, and the table of the solvers."""

from torch import nn

from tools.speed import solvers


def test_groups_by_hand():
    # 300 channels are 128, 128 and 44; a convolution is no linear layer
    model = nn.Sequential(nn.Linear(10, 300), nn.Conv2d(1, 1, 1))
    assert solvers.weight_groups(model, 128) == [1280, 1280, 440]


def test_end_to_end(capsys, monkeypatch):
    model = nn.Module()
    model.backbone = nn.Sequential(nn.Linear(64, 300), nn.Linear(300, 64))
    monkeypatch.setattr(solvers, 'random_detector', lambda config: model)
    assert solvers.main(['--units', '20', '--repeats', '1']) == 0
    rows = [r for r in capsys.readouterr().out.splitlines() if r[:1] == '|']
    cells = [[c.strip() for c in row.split('|')[1:-1]] for row in rows[2:]]
    # three inventories, two budgets, four methods
    assert len(cells) == 24
    assert {c[0] for c in cells} == {'4', '20'}
    for row in cells:
        assert float(row[6]) <= float(row[2])
        assert float(row[7].rstrip('%')) >= 0
