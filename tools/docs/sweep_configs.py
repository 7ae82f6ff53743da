# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Quantizes a small config of every family that MMDetection ships.

Each detector is built with random weights (batch norm statistics taken from
a few images), quantized by ``uniform`` w8a8 on two small images, and asked
to predict. What predicts then goes once through the runner, as a user runs
it: on a tiny data set, by the command, and its artefact is loaded and tested
again. A crash or a time-out of one does not stop the rest.

Some detectors need larger images, which are tried next. A random network can
also be one in which nothing is to be seen: rounding to bfloat16 changes its
output, or all its boxes leave the image. It is then drawn again, its heads
started as MMDetection starts them. Where nothing runs, up to two larger
configs of the family are tried.
"""

import argparse
import json
import multiprocessing
import os
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

import mmdet
import torch

from tools.docs.examine import empty_row, examine
from tools.docs.support_page import to_markdown
from tools.docs.tiny_bert import make_tiny_bert

#: packages that MMDetection can do without and some families cannot
_EXTRAS = (
    'fairscale',
    'lap',
    'mmpretrain',
    'motmetrics',
    'nltk',
    'scikit-image',
    'timm',
    'torchvision',
    'transformers',
)
# from small to large; a name holding none of them counts as middling
_SIZES = (
    'nano',
    'tiny',
    'r18',
    'mobilenet',
    '400mf',
    '-t0',
    '-t-',
    '_t-',
    '-b0',
    'pvt-t',
    'swin-t',
    '_s_',
    '-s-',
    '-s_',
    'r34',
    '800mf',
    'r50',
    'x101',
    'r101',
    'l_',
    '_x_',
    'swin-l',
)


def configs_by_size(folder: Path) -> list[Path]:
    """The configs of a family, the likely smallest first.

    Args:
        folder (Path): A family folder of MMDetection's configs.

    Returns:
        list[Path]: Configs of whole detectors by the sizes in file names,
        then by name length; those without an RPN last.
    """

    def rank(path: Path) -> tuple[bool, int, int, str]:
        """What to sort by, smaller first."""
        sizes = [i for i, s in enumerate(_SIZES) if s in path.stem.lower()]
        return (
            # these leave out what makes proposals
            bool(re.search('(^|[-_])fast-rcnn', path.stem)),
            min(sizes, default=len(_SIZES) // 2),
            len(path.stem),
            path.name,
        )

    return [
        path
        for path in sorted(folder.glob('*.py'), key=rank)
        if re.search(r'^model\s*=|_base_', path.read_text(), re.M)
    ]


def families() -> dict[str, list[Path]]:
    """Family name to its configs, for the installed MMDetection.

    Returns:
        dict[str, list[Path]]: The likely smallest first; at least one.
    """
    root = Path(mmdet.__file__).parent / '.mim' / 'configs'
    found = {
        folder.name: configs_by_size(folder)
        for folder in sorted(root.iterdir())
        if folder.is_dir() and folder.name not in ('_base_', 'common')
    }
    return {name: paths for name, paths in found.items() if paths}


def installed_extras() -> dict[str, str]:
    """Packages that some families need, as far as they are installed.

    Returns:
        dict[str, str]: Name to version.
    """
    found = {}
    for name in _EXTRAS:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def failed_without(row: dict | None) -> str:
    """Why a family failed where no optional package was installed.

    Args:
        row (dict | None): Of an earlier run, see :func:`empty_row`.

    Returns:
        str: Nothing if it did not, or was not run there.
    """
    if row is None or (row['float_ok'] and not row['extras']):
        return ''
    return row['without'] if row['extras'] else row['why']


def in_child(
    paths: list[Path],
    size: tuple[int, int],
    limit: float,
    examine: Callable[[list[Path], tuple[int, int]], Iterable[dict]] = examine,
) -> dict:
    """Runs :func:`examine` in a forked process that may die.

    Args:
        paths (list[Path]): Configs of one family.
        size (tuple[int, int]): Height and width of the images in pixels.
        limit (float): Seconds that it may take.
        examine (Callable): What is run; of the rows that it gives, the last
            one counts.

    Returns:
        dict: See :func:`empty_row`.
    """
    context = multiprocessing.get_context('fork')
    receiver, sender = context.Pipe(duplex=False)
    row = empty_row(config=paths[0].name, size=list(size), seconds=limit)
    failed, end = 'why', time.monotonic() + limit
    # the parent's, so that nothing is left of a child that is killed
    with TemporaryDirectory() as folder:
        child = context.Process(
            target=_work, args=(sender, folder, lambda: examine(paths, size))
        )
        child.start()
        sender.close()
        try:
            while receiver.poll(max(0.0, end - time.monotonic())):
                # what comes after the first row is the run by the runner
                row, failed = receiver.recv(), 'runner'
            row[failed] = f'no result within {limit:.0f} s'
        except EOFError:
            child.join()
            if child.exitcode:
                row[failed] = (
                    f'the process died with exit code {child.exitcode}'
                )
        finally:
            child.kill() if child.is_alive() else None
            child.join()
    return row


def _work(
    sender: Connection, folder: str, rows: Callable[[], Iterable[dict]]
) -> None:
    """The child: silent, and done when the last row is sent.

    Args:
        sender (Connection): Where rows go.
        folder (str): Where files go.
        rows (Callable): Makes the rows.
    """
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.dup2(devnull, 2)
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    os.chdir(folder)
    tempfile.tempdir = folder
    if find_spec('transformers') is not None:
        make_tiny_bert(Path(folder))
    for row in rows():
        sender.send(row)


def main(words: list[str] | None = None) -> int:
    """Runs the sweep.

    Args:
        words (list[str], optional): Defaults to those of the process.

    Returns:
        int: Exit code, 0 whatever single families do.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('families', nargs='*', help='default: all')
    parser.add_argument('--out', default='docs/support_matrix.md')
    parser.add_argument(
        '--size',
        type=int,
        nargs=2,
        default=(128, 160),
        help='height and width of the images',
    )
    parser.add_argument(
        '--limit', type=float, default=600, help='seconds for one family'
    )
    parser.add_argument(
        '--resume',
        action='store_true',
        help='keep the rows of an earlier run; with none left to do, only the '
        'page is written anew',
    )
    args = parser.parse_args(words)
    warnings.filterwarnings('ignore')
    todo = families()
    unknown = [f for f in args.families if f not in todo]
    if unknown:
        parser.error(
            f'no such family: {", ".join(unknown)}; allowed: {", ".join(todo)}'
        )
    extras = installed_extras()
    store = Path(args.out).with_suffix('.json')
    rows = (
        json.loads(store.read_text())
        if (args.resume and store.is_file())
        else {}
    )
    rows = {name: empty_row(**row) for name, row in rows.items()}

    def write() -> None:
        """Writes the rows so far and their page."""
        store.parent.mkdir(parents=True, exist_ok=True)
        store.write_text(json.dumps(rows, indent=1, sort_keys=True))
        Path(args.out).write_text(
            to_markdown(
                dict(sorted(rows.items())),
                len(todo),
                'python -m tools.docs.sweep_configs',
                tuple(args.size),
            )
        )

    write()
    for name, paths in todo.items():
        if name not in (args.families or set(todo) - set(rows)):
            continue
        row = in_child(paths, tuple(args.size), args.limit)
        row.update(extras=extras, without=failed_without(rows.get(name)))
        rows[name] = row
        print(
            name,
            {k: v for k, v in row.items() if k != 'left_float'},
            flush=True,
        )
        write()
    return 0


if __name__ == '__main__':
    sys.exit(main())
