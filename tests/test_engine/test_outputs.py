# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What lies together belongs together."""

import json

import pytest
from mmengine.config import Config

from mmdet_ptq.engine.outputs import Outputs, written_config
from mmdet_ptq.errors import PTQError


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
