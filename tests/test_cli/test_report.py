# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The command that makes reports again."""

import subprocess
import sys
from pathlib import Path

from report_kit import data_of, result_of, work_dir

from mmdet_ptq import cli
from mmdet_ptq.cli.report import main

ROOT = Path(__file__).resolve().parents[2]


def test_one_run(tmp_path, capsys):
    folder = work_dir(tmp_path / 'a', data=data_of())
    assert cli.main(['report', str(folder)]) == 0
    page = folder / 'report.html'
    assert capsys.readouterr().out == f'{page} written\n'
    first = page.read_text()
    assert main([str(folder)]) == 0 and page.read_text() == first


def test_several_runs(tmp_path, capsys, monkeypatch):
    names = [str(work_dir(tmp_path / n, data=data_of())) for n in 'ab']
    monkeypatch.chdir(tmp_path)
    assert main(names) == 0 and (tmp_path / 'report.html').exists()
    out = tmp_path / 'other.html'
    assert main([*names, '--out', str(out)]) == 0 and out.exists()
    assert not (tmp_path / 'a' / 'report.html').exists()


def test_no_file_of_a_run_is_overwritten(tmp_path, capsys):
    folder = work_dir(tmp_path / 'a', data=data_of())
    result = folder / 'ptq_result.json'
    before = result.read_text()
    assert main([str(folder), '--out', str(result)]) == 1
    assert 'give a file that ends in .html' in capsys.readouterr().err
    assert result.read_text() == before


def test_what_is_wrong_is_said(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    assert 'error: ' in capsys.readouterr().err
    folder = work_dir(tmp_path / 'a', data=data_of(version=7))
    assert main([str(folder)]) == 0
    assert 'warning: a: ptq_report.json is of ver' in capsys.readouterr().err
    work_dir(folder, result_of(cost=[1, 2], seconds='x'))
    assert main([str(folder)]) == 0
    assert "warning: section 'time': " in capsys.readouterr().err


def test_the_tool_is_a_door(tmp_path, environment):
    done = subprocess.run(
        [sys.executable, str(ROOT / 'tools' / 'report.py'), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and 'has no ptq_result.json' in done.stderr
