# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What is missing is said at import, in one sentence."""

import subprocess
import sys
from pathlib import Path

import mmdet
import pytest

from mmdet_ptq.dependencies import check_dependencies
from mmdet_ptq.errors import MissingDependencyError, PTQError

ROOT = Path(__file__).parents[1]


def test_everything_is_there():
    check_dependencies()


@pytest.mark.parametrize(
    ('module', 'says'),
    [
        ('torch', 'https://pytorch.org'),
        ('mmengine', "pip install 'mmengine"),
        ('mmcv.ops', 'mim install mmcv'),
        ('mmdet', "pip install 'mmdet"),
        ('pkg_resources', "pip install 'setuptools<81'"),
    ],
)
def test_missing(monkeypatch, module, says):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError) as raised:
        check_dependencies()
    message = str(raised.value)
    assert module in message and says in message
    assert '\n' not in message


def test_an_mmcv_that_mmdetection_does_not_take(monkeypatch, tmp_path):
    """It asserts that, as it is imported."""
    (tmp_path / 'mmdet.py').write_text("assert False, 'MMCV==9 is used'")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'mmdet')
    with pytest.raises(MissingDependencyError, match='MMCV==9 is used'):
        check_dependencies()


@pytest.mark.parametrize('version', ['2.28.2', '3.0.0', '4.0.0'])
def test_version(monkeypatch, version):
    monkeypatch.setattr(mmdet, '__version__', version)
    with pytest.raises(MissingDependencyError, match=f'found {version}'):
        check_dependencies()


def test_newer_releases_do(monkeypatch):
    monkeypatch.setattr(mmdet, '__version__', '3.5.1')
    check_dependencies()


@pytest.mark.parametrize(
    ('module', 'says'),
    [
        ('mmengine', 'mmdet_ptq needs MMEngine'),
        ('pycocotools', 'mmdet_ptq needs the whole MMDetection'),
    ],
)
def test_import_of_the_package(environment, module, says):
    code = (
        f'import sys; sys.modules[{module!r}] = None\n'
        'try:\n    import mmdet_ptq\n'
        'except ImportError as error:\n    print(error)'
    )
    done = subprocess.run(
        [sys.executable, '-c', code],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith(says), done.stderr
    assert done.stdout.count('\n') == 1


def test_is_one_of_ours():
    assert issubclass(MissingDependencyError, PTQError)


def test_requirements_leave_out_what_forks_replace():
    text = (ROOT / 'requirements' / 'runtime.txt').read_text()
    lines = [line.partition('#')[0].strip() for line in text.splitlines()]
    assert [n for n in lines if n.startswith(('mm', 'onedl'))] == []
