# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Tests lie where the code that they test lies."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: folders of tests that belong to no folder of code
OUTSIDE = {
    'test_configs': 'the config files',
    'test_runs': 'whole runs, as a user starts them',
}
#: files of tests that belong to no file of code
BESIDE = {
    'test_passes/test_reconstruct/test_ranks.py': 'several processes',
    'test_tools/test_docs/test_pages.py': 'every page of docs/',
}


def strays(tests: list[str], code: set[str]) -> list[str]:
    """Test files without the file that they are named after.

    Args:
        tests (list[str]): Paths below ``tests``.
        code (set[str]): Paths of code; those of the package start in its
            folder, those of the tools with ``tools``.

    Returns:
        list[str]: E.g. ``'test_a/test_b.py: there is no a/b.py'``.
    """
    found = []
    for test in tests:
        folder, *_ = test.split('/')
        wanted = test.removeprefix('test_').replace('/test_', '/')
        if folder not in OUTSIDE and test not in BESIDE and wanted not in code:
            found.append(f'{test}: there is no {wanted}')
    return found


def files(folder: Path, start: Path, pattern: str = '*.py') -> set[str]:
    """Paths below a folder."""
    return {p.relative_to(start).as_posix() for p in folder.rglob(pattern)}


@pytest.fixture(scope='module')
def tests():
    here = ROOT / 'tests'
    found = files(here, here, 'test_*.py')
    return sorted(t for t in found if '/' in t)


def test_tests_mirror_the_code(tests):
    package, tools = ROOT / 'mmdet_ptq', ROOT / 'tools'
    code = files(package, package) | files(tools, ROOT)
    assert len(tests) > 100
    assert strays(tests, code) == []


def test_exceptions_are_needed(tests):
    assert set(BESIDE) <= set(tests)
    assert set(OUTSIDE) <= {test.split('/')[0] for test in tests}


def test_a_stray_is_named():
    code = {'a/b.py', 'tools/speed/c.py'}
    assert (
        strays(['test_a/test_b.py', 'test_tools/test_speed/test_c.py'], code)
        == []
    )
    assert strays(['test_a/test_c.py', 'test_runs/test_x.py'], code) == [
        'test_a/test_c.py: there is no a/c.py'
    ]
