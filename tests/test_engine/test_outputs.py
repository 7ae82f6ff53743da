# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What lies together belongs together."""

import json

import pytest
from mmengine.config import Config
from rank_kit import on_ranks

from mmdet_ptq.engine.outputs import Outputs, written_config
from mmdet_ptq.errors import PTQError

EMPTY = Config(dict(model=dict(type='RetinaNet')))


def names(folder):
    return sorted(
        p.relative_to(folder).as_posix()
        for p in folder.rglob('*')
        if p.is_file()
    )


def whole_run(folder, config, mark):
    outputs = Outputs(folder, 'quantized.pth', config)
    started(outputs, mark)
    outputs.artefact.write_text(mark)
    outputs.settle()
    return outputs


def started(outputs, mark):
    cfg = Config(dict(model=dict(type='RetinaNet'), mark=mark))
    outputs.begin(cfg, False)
    found = dict(config=f'/some/where/{outputs.config}', mark=mark)
    outputs.result.write_text(json.dumps(found))


def marks(folder, config):
    return {
        Config.fromfile(folder / config).mark,
        json.loads((folder / 'ptq_result.json').read_text())['mark'],
        (folder / 'quantized.pth').read_text(),
    }


def test_a_new_set_replaces_the_old_one(tmp_path):
    whole_run(tmp_path, 'a.py', 'first')
    whole_run(tmp_path, 'b.py', 'second')
    # the config of the first is of no artefact any more
    assert names(tmp_path) == ['b.py', 'ptq_result.json', 'quantized.pth']
    assert marks(tmp_path, 'b.py') == {'second'}


def test_a_stopped_run_leaves_the_old_set(tmp_path):
    whole_run(tmp_path, 'a.py', 'first')
    started(Outputs(tmp_path, 'quantized.pth', 'a.py'), 'second')
    assert marks(tmp_path, 'a.py') == {'first'}
    again = Outputs(tmp_path, 'quantized.pth', 'a.py')
    assert json.loads(again.results[0].read_text())['mark'] == 'second'
    whole_run(tmp_path, 'a.py', 'third')
    assert names(tmp_path) == ['a.py', 'ptq_result.json', 'quantized.pth']
    assert marks(tmp_path, 'a.py') == {'third'}


def test_without_an_artefact_nothing_is_put_aside(tmp_path):
    outputs = Outputs(tmp_path, 'quantized.pth', 'a.py')
    started(outputs, 'first')
    assert names(tmp_path) == ['a.py', 'ptq_result.json']


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / 'quantized.pth').write_text('')
    (tmp_path / 'unfinished').write_text('no folder')
    outputs = Outputs(tmp_path, 'quantized.pth', 'a.py')
    with pytest.raises(PTQError, match='cannot write the config'):
        started(outputs, 'first')


@pytest.mark.parametrize('resume', [False, True])
def test_what_is_unfinished_is_kept_to_be_resumed(tmp_path, resume):
    whole_run(tmp_path, 'a.py', 'first')
    started(Outputs(tmp_path, 'quantized.pth', 'b.py'), 'second')
    Outputs(tmp_path, 'quantized.pth', 'a.py').begin(EMPTY, resume)
    left = ['a.py', 'b.py', 'ptq_result.json'] if resume else ['a.py']
    assert names(tmp_path / 'unfinished') == left


def test_after_a_run_nothing_is_unfinished(tmp_path):
    whole_run(tmp_path, 'a.py', 'first')
    outputs = whole_run(tmp_path, 'a.py', 'second')
    assert outputs.result == tmp_path / 'ptq_result.json'
    assert not (tmp_path / 'unfinished').exists()
    # the artefact was taken away while another run was stopped
    started(Outputs(tmp_path, 'quantized.pth', 'a.py'), 'third')
    outputs.artefact.unlink()
    resumed = Outputs(tmp_path, 'quantized.pth', 'a.py')
    resumed.begin(EMPTY, True)
    resumed.settle()
    assert not (tmp_path / 'unfinished').exists()


def test_a_config_comes_without_a_result(tmp_path):
    """No float test, so no result yet."""
    outputs = whole_run(tmp_path, 'a.py', 'first')
    outputs = Outputs(tmp_path, 'quantized.pth', 'a.py')
    outputs.begin(Config(dict(EMPTY, mark='second')), False)
    outputs.settle()
    assert Config.fromfile(tmp_path / 'a.py').mark == 'second'


def test_a_set_that_cannot_be_moved(tmp_path):
    (tmp_path / 'quantized.pth').write_text('')
    (tmp_path / 'a.py').mkdir()
    outputs = Outputs(tmp_path, 'quantized.pth', 'a.py')
    outputs.begin(EMPTY, False)
    with pytest.raises(PTQError, match=r'cannot move .*unfinished to '):
        outputs.settle()


def test_one_rank_writes(tmp_path):
    def begin(rank):
        (tmp_path / str(rank)).mkdir()
        outputs = Outputs(tmp_path / str(rank), 'quantized.pth', 'a.py')
        outputs.begin(EMPTY, False)
        return names(outputs.folder)

    assert on_ranks(begin, 2, tmp_path) == [['a.py'], []]


def test_config_that_a_run_wrote(tmp_path):
    path = tmp_path / 'ptq_result.json'
    assert written_config(tmp_path) is None
    for text in ('{', '[]', '{}', '{"config": ""}', '{"config": 3}'):
        path.write_text(text)
        assert written_config(tmp_path) is None
    path.write_text('{"config": "/a/b.py"}')
    assert written_config(tmp_path) == tmp_path / 'b.py'
    # a config of the user's own is never removed
    path.write_text(json.dumps(dict(config=str(tmp_path / 'b.py'))))
    assert written_config(tmp_path) is None
