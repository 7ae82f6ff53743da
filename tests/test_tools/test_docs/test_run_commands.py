# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Commands and configs on the pages; `run_commands` runs the commands."""

import re
import sys
from pathlib import Path

import pytest
from mmengine.config import Config

from mmdet_ptq.quant_cfg import parse_quant_cfg
from tools.docs import run_commands
from tools.docs.run_commands import (
    BLOCK,
    LEFT,
    PAGES,
    commands,
    own_config,
    scripts,
    shortened,
    spelled_out,
    why_left,
)

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / 'docs'
TEXT = """
```bash
make a   # what for
run CONFIG \\
    --more
```
```python
import this
```
```bash
for x in 1 2; do
    run $x
done
```
```python
rules = []
```
"""


def text_of(page):
    return (ROOT / page).read_text()


def test_commands_of_a_page():
    assert list(commands(TEXT)) == [
        'make a',
        'run CONFIG      --more',
        'for x in 1 2; do\n    run $x\ndone',
    ]
    assert scripts(TEXT) == ['import this\n']


def test_words():
    assert spelled_out('p CONFIG work_dirs/NAME/NAME.py $NAMES') == (
        'p configs/digits/retinanet_digits.py '
        'work_dirs/retinanet_digits/retinanet_digits.py $NAMES'
    )


def test_what_takes_hours_is_shortened():
    learns = 'python tools/ptq.py A B --recipe reg_ptq'
    assert shortened(learns) == f'{learns} --iters 20'
    for command in (f'{learns} --iters 200', 'p --recipe uniform'):
        assert shortened(command) == command


def test_config_of_a_reader(tmp_path):
    text = """
```python
_base_ = 'CONFIG'
quant_cfg = dict(bits='w4a4')
```
```bash
p MY_CONFIG
```
"""
    path = tmp_path / 'my.py'
    path.write_text(own_config(text))
    cfg = Config.fromfile(path)
    assert cfg.quant_cfg == dict(bits='w4a4')
    assert cfg.model.type == 'RetinaNet'


def test_every_word_is_known():
    """Of a command that is run, no word in capitals is left."""
    for page in PAGES:
        for command in commands(text_of(page)):
            if not why_left(command):
                left = re.findall(r'(?<![$\w])[A-Z]{3,}\b', command)
                assert set(left) <= {*run_commands.WORDS, 'MMDET'}, command


def test_exceptions_are_needed():
    found = [c for page in PAGES for c in commands(text_of(page))]
    for start in LEFT:
        assert any(c.startswith(start) for c in found), start


def test_failures_are_told(capsys):
    assert run_commands.run([sys.executable, '-c', ''], 'good')
    assert not run_commands.run([sys.executable, '-c', 'nope'], 'bad')
    said = capsys.readouterr().out
    assert 'ok' in said and 'NameError' in said and 'FAILED' in said


def configs():
    """Python on pages that is part of a config."""
    for page in ('README.md', *sorted(p.name for p in FOLDER.glob('*.md'))):
        path = ROOT / page if page == 'README.md' else FOLDER / page
        for i, (kind, text) in enumerate(BLOCK.findall(path.read_text())):
            if kind == 'python' and text.startswith(
                ('_base_', 'quant_cfg', 'rules')
            ):
                yield pytest.param(text, id=f'{path.stem}-{i}')


@pytest.mark.parametrize('text', configs())
def test_configs_are_right(text, tmp_path):
    text = text.replace(
        "'CONFIG'", repr(str(ROOT / run_commands.WORDS['CONFIG']))
    )
    text = text.replace('/path/to/', f'{ROOT}/')
    path = tmp_path / 'config.py'
    path.write_text(text)
    cfg = Config.fromfile(path).to_dict()
    if 'quant_cfg' not in cfg:
        recipe = str(path) if 'pass_args' in cfg else 'uniform'
        cfg['quant_cfg'] = dict(recipe=recipe, bits='w4a4')
        if 'pass_args' not in cfg:
            cfg['quant_cfg']['rules'] = cfg['rules']
    assert parse_quant_cfg(cfg['quant_cfg']).rules
