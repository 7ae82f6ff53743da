# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The rooms of the package: each imports only from those before it.

A room is a file or a folder right below ``mmdet_ptq``. ``docs/design.md``
draws the same order.
"""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / 'mmdet_ptq'
#: from the ground up
FLOORS = (
    (
        'version',
        'errors',
        'checks',
        'dependencies',
        'registry',
        'structures',
        'records',
        'context',
    ),
    ('quantizers', 'solvers'),
    ('observers', 'layers', 'surgery'),
    ('graph', 'detectors', 'cost', 'quant_cfg'),
    ('plan', 'calibration', 'losses'),
    ('passes', 'recipes'),
    ('artefact', 'deploy', 'report'),
    ('engine', 'apis', 'cli', '__main__'),
    # what users import, and what helps to test a detector of theirs
    ('__init__', 'testing'),
)
ROOMS = tuple(room for floor in FLOORS for room in floor)


def imports(source: str, file: str) -> Iterator[tuple[int, str]]:
    """Line and full name of what a file of the package imports of it.

    Args:
        source (str): Its text.
        file (str): Its path from the folder that holds the package.

    Yields:
        tuple[int, str]: E.g. ``(12, 'mmdet_ptq.layers.base')``; of a ``from
        a import b`` it is ``a.b``, whether b is a module or not.
    """
    folder = file.split('/')[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            here = folder[: len(folder) + 1 - node.level] if node.level else []
            base = [*here, *filter(None, [node.module])]
            names = ['.'.join([*base, alias.name]) for alias in node.names]
        else:
            continue
        for name in names:
            if name.split('.')[0] == 'mmdet_ptq':
                yield node.lineno, name


def room_of(path: str) -> str:
    """Room of a file or of a dotted name, from the package on."""
    parts = path.removesuffix('.py').replace('/', '.').split('.')
    return parts[1] if len(parts) > 1 else '__init__'


def offences(sources: Mapping[str, str]) -> list[str]:
    """Imports that go up, and files that are in no room.

    Args:
        sources (Mapping[str, str]): Text by path from the folder that holds
            the package.

    Returns:
        list[str]: A sentence for each.
    """
    found = []
    for file, source in sources.items():
        room = room_of(file)
        if room not in ROOMS:
            found.append(f'{file}: no room {room!r}; give it a place in ROOMS')
            continue
        for line, name in imports(source, file):
            other = room_of(name)
            # names that the package itself offers come from its top
            other = other if other in ROOMS else '__init__'
            if other != room and ROOMS.index(other) >= ROOMS.index(room):
                found.append(
                    f'{file}:{line}: {room} imports {name} of {other}, which '
                    f'is above it; move what both need to {room} or below, '
                    'or hand it over as an argument'
                )
    return found


def test_a_room_imports_only_from_rooms_before_it():
    sources = {
        f.relative_to(PACKAGE.parent).as_posix(): f.read_text()
        for f in sorted(PACKAGE.rglob('*.py'))
        if '.mim' not in f.parts
    }
    assert len(sources) > 100
    assert not offences(sources), '\n'.join(offences(sources))


def test_every_room_comes_once():
    assert len(set(ROOMS)) == len(ROOMS)


@pytest.mark.parametrize(
    ('file', 'text', 'other'),
    [
        ('layers/base.py', 'from ..engine import run', 'engine'),
        ('layers/base.py', 'from ..plan.make import make_plan', 'plan'),
        ('layers/base.py', 'from .. import graph', 'graph'),
        ('layers/base.py', 'import mmdet_ptq.graph.tracer', 'graph'),
        ('layers/base.py', 'from mmdet_ptq.passes import LAPQ', 'passes'),
        ('layers/base.py', 'from mmdet_ptq import PTQRunner', '__init__'),
        # in the same floor, but later
        ('layers/base.py', 'from ..surgery import decompose', 'surgery'),
        ('passes/reconstruct/learners/steps.py', 'from ....apis import x', ''),
        ('errors.py', 'from .registry import PASSES', 'registry'),
        ('detectors/base.py', 'def f():\n    from ..losses import L2Loss', ''),
        (
            'observers/lp.py',
            'from typing import TYPE_CHECKING\n'
            'if TYPE_CHECKING:\n    from ..layers import QuantLayer',
            'layers',
        ),
        ('cost/macs.py', 'from ..cost.paper import x, y\nimport x', None),
        ('apis.py', 'from .engine import run\nfrom . import version', None),
        ('__init__.py', 'from .apis import x\nfrom .testing import y', '?'),
        ('plan/rules.py', 'from ..quant_cfg import x\nimport torch', None),
        ('plan/rules.py', 'from .attach import x\nfrom . import make', None),
    ],
)
def test_imports_that_go_up_are_found(file, text, other):
    found = offences({f'mmdet_ptq/{file}': text})
    assert len(found) == (other is not None), found
    if other:
        line = text.count('\n') + 1
        assert found[0].startswith(f'mmdet_ptq/{file}:{line}: '), found
        assert other == '?' or f' of {other}, which is above' in found[0]


def test_a_room_without_a_place():
    (found,) = offences({'mmdet_ptq/attic/box.py': ''})
    assert "no room 'attic'" in found
