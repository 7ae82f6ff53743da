# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Files of runs, whole and broken."""

import json

import pytest
from report_kit import data_of, result_of, work_dir

from mmdet_ptq.errors import PTQError
from mmdet_ptq.report.files import (
    DATA,
    RESULT,
    VERSION,
    read_run,
    write_data,
    write_text,
)


def test_what_was_written_is_read(tmp_path):
    work_dir(tmp_path / 'a')
    started = result_of()['started']
    write_data(tmp_path / 'a', dict(layers=None), started)
    run = read_run(tmp_path / 'a')
    assert (run.name, run.problems) == ('a', [])
    assert run.part('cost', 'macs') == 2e9
    assert run.part('cost', 'macs', 'x') is run.part('nothing') is None
    assert run.data == dict(version=VERSION, started=started, layers=None)


def test_no_result(tmp_path):
    with pytest.raises(PTQError, match='is no folder; give the work dir'):
        read_run(tmp_path / 'none')
    with pytest.raises(PTQError, match=f'has no {RESULT}'):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ('text', 'says'),
    [
        ('', 'no whole JSON file'),
        (json.dumps(result_of())[:-40], 'cut off or changed'),
        ('[1]', 'holds no JSON object'),
        ('{}', 'no result of mmdet-ptq'),
        ('{"quantized": 3}', 'no result of mmdet-ptq'),
    ],
)
def test_a_broken_result_is_an_error(tmp_path, text, says):
    (tmp_path / RESULT).write_text(text)
    with pytest.raises(PTQError, match=says):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ('text', 'says'),
    [
        (json.dumps(data_of())[:-9], 'no whole JSON file'),
        (
            json.dumps(data_of(version=0)),
            f'version 0, this package reads {VERSION}',
        ),
        (json.dumps(data_of(started='x')), 'of another run than'),
        ('[]', 'holds no JSON object'),
    ],
)
def test_broken_data_is_a_problem_told(tmp_path, text, says):
    work_dir(tmp_path)
    (tmp_path / DATA).write_text(text)
    run = read_run(tmp_path)
    assert run.data == {}
    (problem,) = run.problems
    assert says in problem and 'sections that need it are left out' in problem


def test_a_file_that_cannot_be_written(tmp_path):
    (tmp_path / 'x.tmp').mkdir()
    with pytest.raises(PTQError, match='cannot write'):
        write_text(tmp_path / 'x.json', '')


def test_what_could_not_be_put_in_place_is_not_left(tmp_path):
    (tmp_path / 'folder').mkdir()
    with pytest.raises(PTQError, match=r'cannot write .*: Is a directory'):
        write_text(tmp_path / 'folder', 'text')
    assert [p.name for p in tmp_path.iterdir()] == ['folder']


def test_nan_is_not_written(tmp_path):
    with pytest.raises(ValueError, match='not JSON compliant'):
        write_data(tmp_path, dict(x=float('nan')), '')
