# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The configs of the transformer recipes are those of the lists."""

import sys
from pathlib import Path

from mmdet_ptq.quant_cfg import recipe_names
from tools.docs import make_ptq_configs as tool

ROOT = Path(__file__).parents[3]


def test_files_are_up_to_date():
    folder = ROOT / tool.FOLDER
    wanted = tool.files()
    assert set(tool.RECIPES) <= set(recipe_names())
    found = {
        path.relative_to(folder): path.read_text()
        for recipe in tool.RECIPES
        for path in (folder / recipe).glob('*.py')
    }
    assert found == wanted
    assert len(wanted) == len(tool.RECIPES) * (4 * 3 + 2)


def test_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['tool', '--out', str(tmp_path)])
    assert tool.main() == 0
    one = tmp_path / 'adalog' / 'detr_r50_8xb2-150e_coco_w6a6.py'
    monkeypatch.setattr(sys, 'argv', [*sys.argv, '--check'])
    assert tool.main() == 0
    one.write_text('')
    assert tool.main() == 1
    assert f'{one} is out of date' in capsys.readouterr().out
