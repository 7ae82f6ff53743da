# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What an installed package brings along."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / 'mmdet_ptq' / 'recipes'
TOOLS = {
    f'tools/{name}'
    for name in (
        'cost.py',
        'dist_ptq.sh',
        'ptq.py',
        'report.py',
        'sensitivity.py',
        'slurm_ptq.sh',
    )
}
PARTS = (
    *('configs', 'mmdet_ptq', 'requirements', 'tools'),
    *('LICENSE', 'README.md', 'model-index.yml', 'pyproject.toml', 'setup.py'),
)


@pytest.fixture
def build(tmp_path):
    """Runs a hook of the build in a copy of the tree; gives copy and file."""

    def run(hook):
        tree, out = tmp_path / 'tree', tmp_path / 'out'
        ignore = shutil.ignore_patterns('__pycache__', '.mim')
        for part in PARTS:
            source = ROOT / part
            if source.is_dir():
                shutil.copytree(source, tree / part, ignore=ignore)
            else:
                shutil.copy(source, tree / part)
        # a test folder in the tree does not go along
        (tree / 'tests').mkdir()
        (tree / 'tests' / '__init__.py').touch()
        code = (
            f'from setuptools import build_meta as m; m.{hook}({str(out)!r})'
        )
        done = subprocess.run(
            [sys.executable, '-c', code],
            cwd=tree,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        (wheel,) = out.glob('*.whl')
        return tree, wheel

    return run


def test_wheel_brings_what_a_user_runs(build):
    tree, wheel = build('build_wheel')
    with ZipFile(wheel) as opened:
        found = set(opened.namelist())
    tops = {name.split('/')[0].split('-')[0] for name in found}
    assert tops == {'mmdet_ptq'}
    mim = 'mmdet_ptq/.mim/'
    extra = {n.removeprefix(mim) for n in found if n.startswith(mim)}
    configs = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / 'configs').rglob('*.py')
    }
    recipes = {
        f'configs/recipes/{path.relative_to(RECIPES).as_posix()}'
        for path in RECIPES.rglob('*.py')
    }
    assert extra == {'model-index.yml', *TOOLS, *configs, *recipes}
    modules = {
        path.relative_to(tree).as_posix()
        for path in (tree / 'mmdet_ptq').rglob('*.py')
    }
    assert modules <= found


@pytest.fixture
def installed(build, tmp_path):
    """An environment of its own with the wheel, and the packages of this."""
    _, wheel = build('build_wheel')
    place = tmp_path / 'venv'
    venv.create(place, with_pip=False)
    python = place / 'bin' / 'python'
    (site,) = place.glob('lib/python*/site-packages')
    # as a path, so that an editable install of this tree is not read
    (site / 'of_the_tests.pth').write_text(sysconfig.get_path('purelib'))
    subprocess.run(
        [
            *(sys.executable, '-m', 'pip', '--python', str(python)),
            *('install', '--no-deps', '--no-index', str(wheel)),
        ],
        check=True,
        capture_output=True,
    )
    return site / 'mmdet_ptq', place / 'bin'


@pytest.mark.slow
def test_wheel_needs_no_clone(installed, tiny, tmp_path):
    """Both doors of a user, in an empty folder."""
    package, commands = installed
    empty = tmp_path / 'empty'
    empty.mkdir()
    env = dict(os.environ, OMP_NUM_THREADS='1', PYTHONIOENCODING='ascii')
    env.pop('PYTHONPATH', None)
    found = []
    for i, door in enumerate(
        (
            [commands / 'mmdet-ptq', 'quantize'],
            # the file that `mim run mmdet_ptq ptq` runs
            [commands / 'python', package / '.mim' / 'tools' / 'ptq.py'],
        )
    ):
        work = empty / str(i)
        done = subprocess.run(
            [
                *map(str, door),
                *(str(tiny.config['retinanet']),),
                *(str(tiny.checkpoint['retinanet']), '--work-dir', str(work)),
                *('--device', 'cpu', '--recipe', 'minmax', '--calib-num', '2'),
            ],
            cwd=empty,
            env=env,
            capture_output=True,
            encoding='ascii',
        )
        assert done.returncode == 0, done.stderr
        assert 'parameters (MB)' in done.stdout
        found.append((work / 'quantized.pth').read_bytes())
    assert found[0] == found[1]
    where = subprocess.run(
        [
            commands / 'python',
            '-c',
            'import mmdet_ptq as m; print(m.__path__)',
        ],
        cwd=empty,
        env=env,
        capture_output=True,
        text=True,
    )
    assert str(package) in where.stdout


def test_editable_install_links_them(build):
    tree, _ = build('build_editable')
    mim = tree / 'mmdet_ptq' / '.mim'
    for name in ('configs/ptq', 'model-index.yml', *TOOLS):
        assert (mim / name).is_symlink()
        assert (mim / name).resolve() == tree / name
    recipes = mim / 'configs' / 'recipes'
    assert recipes.is_symlink()
    assert recipes.resolve() == tree / 'mmdet_ptq' / 'recipes'
    assert set(os.listdir(mim / 'tools')) == {Path(n).name for n in TOOLS}


INHERIT = """
import sys
from mmdet_ptq.cli import main
open('mine.py', 'w').write(
    "_base_ = 'mmdet_ptq::recipes/qdrop.py'\\n"
    "passes = [*_base_.passes[:-1], dict(_base_.passes[-1], iters=7)]\\n")
open('config.py', 'w').write(
    "_base_ = 'mmdet_ptq::digits/retinanet_digits.py'\\n")
words = 'config.py --recipe mine.py --bits w4a4 --print-recipe'
assert main(['quantize', *words.split()]) == 0
from mmdet_ptq.cli.config import load_config
from mmdet_ptq.cli.quantize import parse_args
cfg = load_config(parse_args(['config.py']))
assert '_scope_' not in cfg.test_dataloader.dataset, cfg.test_dataloader
assert cfg.model.type == 'RetinaNet'
"""


@pytest.mark.parametrize('hook', ['build_wheel', 'build_editable'])
def test_configs_and_recipes_are_inherited_by_name(build, tmp_path, hook):
    """From wherever the package lies."""
    where, wheel = build(hook)
    if hook == 'build_wheel':
        where = tmp_path / 'site'
        with ZipFile(wheel) as opened:
            opened.extractall(where)
    done = subprocess.run(
        [sys.executable, '-c', INHERIT],
        cwd=tmp_path,
        env=dict(os.environ, PYTHONPATH=str(where)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "'iters': 7" in done.stdout
