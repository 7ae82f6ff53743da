# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Runs the commands and scripts of the pages as they are printed.

Words in capitals stand for what a reader has; a digits detector takes their
place. What would take hours gets ``--iters 20``, and what is not run here is
told with the reason. Run it in the root of the
repository, after ``make demo``::

    python -m tools.docs.run_commands
"""

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import mmdet

PAGES = (
    'README.md',
    'CONTRIBUTING.md',
    'docs/get_started.md',
    'docs/which_recipe.md',
    'docs/ap_dropped.md',
    'docs/accuracy.md',
    'docs/digits.md',
    'docs/measured.md',
)
#: what a word of a page stands for
WORDS = {
    'CONFIG': 'configs/digits/retinanet_digits.py',
    'CHECKPOINT': 'demo/checkpoints/retinanet_digits.pth',
    'NAME_digits': 'retinanet_digits',
    'NAME': 'retinanet_digits',
    'MY_CONFIG': 'work_dirs/my_config.py',
    'MMDETECTION': f'{mmdet.__path__[0]}/.mim',
    'GPUS': '2',
}
#: how a command starts that is not run, and why
LEFT = {
    'make env': 'the environment is there',
    'make test': 'continuous integration runs it',
    'make coverage': 'the tests again, slower',
    '.venv/bin/pre-commit install': 'changes the clone',
    'bash tools/slurm_ptq.sh': 'needs a cluster',
    'python -m tools.accuracy.': 'takes hours; the tables come from it',
    'export OMP_NUM_THREADS=1\ntrain()': 'trains for hours',
    'python tools/ptq.py configs/coco_mini/': 'needs COCO images',
}
#: what is added to commands that would take hours
SHORTER = {'--recipe reg_ptq': '--iters 20'}
BLOCK = re.compile(r'```(bash|python)\n(.*?)```', re.DOTALL)


def commands(page: str) -> Iterator[str]:
    """The commands of a page.

    Args:
        page (str): Markdown.

    Yields:
        str: Lines of bash blocks, each as one command; a block that defines
        functions or loops, or sets variables, is one.
    """
    for kind, text in BLOCK.findall(page):
        if kind != 'bash':
            continue
        text = re.sub(r'\s+#[^\n]*', '', text.strip())
        if re.search(r'\(\) \{|^for |^\w+=', text, re.MULTILINE):
            yield text
        else:
            yield from text.replace('\\\n', ' ').splitlines()


def scripts(page: str) -> list[str]:
    """Python blocks of a page that are whole scripts."""
    found = [text for kind, text in BLOCK.findall(page) if kind == 'python']
    return [text for text in found if text.startswith(('from ', 'import '))]


def own_config(page: str) -> str:
    """What a reader has in MY_CONFIG: the last config before its first use.

    Args:
        page (str): Markdown with such a word in a command.

    Returns:
        str: Of a config that inherits from the digits detector.
    """
    before = page[: page.index(' MY_CONFIG')]
    found = [text for kind, text in BLOCK.findall(before) if kind == 'python']
    return found[-1].replace(
        "'CONFIG'", repr(os.path.abspath(WORDS['CONFIG']))
    )


def why_left(command: str) -> str:
    """Why a command is not run, '' if it is."""
    return next((why for c, why in LEFT.items() if command.startswith(c)), '')


def shortened(command: str) -> str:
    """A command with fewer steps of what takes hours by default."""
    for part, few in SHORTER.items():
        if part in command and few.split()[0] not in command:
            return f'{command} {few}'
    return command


def spelled_out(command: str) -> str:
    """A command with what its words stand for."""
    names = '|'.join(WORDS)
    return re.sub(
        rf'(?<![A-Z_])({names})(?![A-Z])', lambda m: WORDS[m[1]], command
    )


def run(command: list[str], show: str) -> bool:
    """Runs one in a process; whether it went well.

    Args:
        command (list[str]): Its words.
        show (str): What is printed of it.
    """
    path = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
    start = time.monotonic()
    done = subprocess.run(
        command,
        env=dict(os.environ, PATH=path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    seconds = time.monotonic() - start
    state = 'FAILED' if done.returncode else 'ok'
    print(f'{state:>8} {seconds:6.1f} s  {show}', flush=True)
    if done.returncode:
        print(done.stdout[-2000:])
    return not done.returncode


def main() -> int:
    """Runs everything; 1 if something failed."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('pages', nargs='*', default=PAGES)
    good, seen = True, set()
    for name in parser.parse_args().pages:
        print(name)
        page = Path(name).read_text()
        if ' MY_CONFIG' in page:
            Path(WORDS['MY_CONFIG']).parent.mkdir(exist_ok=True)
            Path(WORDS['MY_CONFIG']).write_text(own_config(page))
        for command in commands(page):
            if command in seen:
                continue
            seen.add(command)
            why = why_left(command)
            if why:
                print(f'{"not run":>8}           {command} ({why})')
            else:
                command = shortened(command)
                words = ['bash', '-ec', spelled_out(command)]
                good &= run(words, command)
        for script in scripts(page):
            words = [sys.executable, '-c', script]
            good &= run(words, f'{script.splitlines()[0]} ...')
    return 0 if good else 1


if __name__ == '__main__':
    sys.exit(main())
