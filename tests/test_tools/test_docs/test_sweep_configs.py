# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The sweep survives what single families do."""

import os
import tempfile
import time
from pathlib import Path

from tools.docs import sweep_configs as sweep
from tools.docs.examine import empty_row


def test_families():
    found = sweep.families()
    assert len(found) > 80
    assert found['yolox'][0].name.startswith('yolox_nano')
    assert 'r18' in found['retinanet'][0].name
    assert '_base_' not in found
    # a Fast R-CNN without the RPN that the family is about comes last
    assert '_faster-rcnn' in found['cascade_rpn'][1].name


def test_a_crash_and_a_hang_are_rows():
    def run(limit, what):
        return sweep.in_child([Path('x.py')], (8, 8), limit, what)

    row = run(20, lambda *_: os._exit(3))
    assert 'exit code 3' in row['why'] and not row['quantized']
    row = run(0.2, lambda *_: time.sleep(60))
    assert 'no result within' in row['why']


def test_what_is_known_before_the_runner_is_kept():
    def run(limit, after):
        def rows(*_):
            yield empty_row(config='x.py', predicts=True)
            after()
            yield empty_row(config='x.py', predicts=True, runner='yes')

        return sweep.in_child([Path('x.py')], (8, 8), limit, rows)

    assert run(20, lambda: None)['runner'] == 'yes'
    row = run(20, lambda: os._exit(3))
    assert row['predicts'] and 'exit code 3' in row['runner']
    assert not row['why']
    row = run(0.5, lambda: time.sleep(60))
    assert row['predicts'] and 'no result within' in row['runner']


def test_a_child_leaves_no_files(tmp_path):
    def rows(*_):
        Path('here').write_text(tempfile.mkdtemp())
        yield empty_row(why=os.getcwd())
        time.sleep(60)

    folder = sweep.in_child([Path('x.py')], (8, 8), 0.5, rows)['why']
    assert folder != os.getcwd() and not Path(folder).exists()


def test_extras(monkeypatch):
    def version(name):
        if name != 'lap':
            raise sweep.PackageNotFoundError(name)
        return '1.2'

    monkeypatch.setattr(sweep, 'version', version)
    assert sweep.installed_extras() == {'lap': '1.2'}
    plain = empty_row(why='no lap')
    assert sweep.failed_without(None) == ''
    assert sweep.failed_without(plain) == 'no lap'
    assert sweep.failed_without(dict(plain, float_ok=True)) == ''
    # a row that was made with extras knows what the one before it said
    again = dict(plain, extras={'lap': '1.2'}, without='no lap', why='else')
    assert sweep.failed_without(again) == 'no lap'


def test_resume_keeps_rows_and_writes_the_page(monkeypatch, tmp_path):
    store = tmp_path / 'page.json'
    # a row of a version that knew less
    store.write_text('{"ssd": {"config": "old.py", "why": "some reason"}}')
    paths = [Path('x.py')]
    monkeypatch.setattr(sweep, 'families', lambda: dict(ssd=paths, sort=paths))
    monkeypatch.setattr(
        sweep, 'in_child', lambda *_: empty_row(config='new.py')
    )
    out = tmp_path / 'page.md'
    words = ['--out', str(out), '--resume']
    assert sweep.main(words) == 0
    text = out.read_text()
    assert '| ssd | old.py |' in text and '| sort | new.py |' in text
    out.unlink()
    assert sweep.main(words) == 0
    assert out.read_text() == text
