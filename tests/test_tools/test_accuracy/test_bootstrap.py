# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The table of two methods."""

import pytest
from bootstrap_kit import written

from tools.accuracy import bootstrap


def test_the_command(tmp_path, monkeypatch, capsys):
    truth, found = written(tmp_path, 'plain')
    _, half = written(tmp_path, 'half', keep=0.5)
    monkeypatch.setattr(bootstrap, 'files_of', lambda _: dict(val=truth))
    sides = dict(gptq=found, qdrop=half)

    def folder_of(cell, work):
        folder = tmp_path / cell[1]
        if cell[0] != 'retinanet':
            return tmp_path / 'nowhere'
        folder.mkdir(exist_ok=True)
        text = sides[cell[1]].read_text()
        (folder / bootstrap.PREDICTIONS).write_text(text)
        return folder

    monkeypatch.setattr(bootstrap, 'folder_of', folder_of)
    words = ['compensated', 'gptq', 'qdrop', '--drawings', '20']
    words += ['--out', str(tmp_path)]
    assert bootstrap.main(words) == 0
    page = (tmp_path / 'compensated_w4a8_gptq_qdrop.md').read_text()
    (row,) = [line for line in page.splitlines() if '| retinanet' in line]
    cells = [cell.strip() for cell in row.strip('|').split('|')]
    assert float(cells[1]) > float(cells[2]) > 0
    assert float(cells[3]) == pytest.approx(
        float(cells[1]) - float(cells[2]), abs=2e-3
    )
    assert 'yolof: no predictions of gptq' in capsys.readouterr().out
    monkeypatch.setattr(bootstrap, 'folder_of', lambda *_: tmp_path / 'none')
    with pytest.raises(SystemExit):
        bootstrap.main(words)
