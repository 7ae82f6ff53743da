# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Counts files, long functions and guesses of the package at commits.

``python -m tools.docs.house_numbers OLD NEW`` prints a column for each, and
lists the long functions of the last.
"""

import ast
import re
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: a function of more lines, its docstring left out, wants to be two
LONG = 40
#: asks a quantizer what it is or has
GUESS = re.compile(
    r'\b(hasattr|getattr|isinstance)\(\s*'
    r'(\w+\.)?(weight_)?(quantizer|act_quantizers\[\w+\]|q|one\.quantizer)\b'
)


def sources(commit: str) -> dict[str, str]:
    """Python files of the package at a commit, by path."""
    listed = _git('ls-tree', '-r', '--name-only', commit, 'mmdet_ptq')
    paths = [p for p in listed.splitlines() if p.endswith('.py')]
    return {path: _git('show', f'{commit}:{path}') for path in paths}


def _git(*args: str) -> str:
    done = subprocess.run(
        ['git', *args], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f'git {" ".join(args)}: {done.stderr.strip()}')
    return done.stdout


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    total = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None:
        total -= first.end_lineno - first.lineno + 1
    return total


def long_functions(files: dict[str, str]) -> dict[str, int]:
    """Functions of more than ``LONG`` lines.

    Args:
        files (dict[str, str]): Path to text.

    Returns:
        dict[str, int]: ``path:line name`` to lines.
    """
    found = {
        f'{path}:{node.lineno} {node.name}': body_lines(node)
        for path, text in files.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    return {name: lines for name, lines in found.items() if lines > LONG}


def count(files: dict[str, str]) -> dict[str, str]:
    """The numbers of one commit.

    Args:
        files (dict[str, str]): Path to text.

    Returns:
        dict[str, str]: What is counted to its number.
    """
    lengths = {p: len(text.splitlines()) for p, text in files.items()}
    longest = max(lengths, key=lengths.__getitem__)
    recipes = [n for p, n in lengths.items() if '/recipes/' in p]
    found = {
        'files': len(files),
        'lines': sum(lengths.values()),
        'median file': round(statistics.median(lengths.values())),
        'longest file': f'{lengths[longest]} ({longest})',
        f'functions over {LONG} lines': len(long_functions(files)),
        'lines in recipes/': sum(recipes),
    }
    guesses = [
        match[1] for text in files.values() for match in GUESS.finditer(text)
    ]
    for kind in ('hasattr', 'getattr', 'isinstance'):
        found[f'{kind} on quantizers'] = guesses.count(kind)
    return {name: str(value) for name, value in found.items()}


def main(commits: list[str] | None = None) -> int:
    """Prints a Markdown table, a column for each commit."""
    commits = sys.argv[1:] if commits is None else commits
    if not commits or commits[0].startswith('-'):
        print(__doc__)
        return 0
    found = [sources(commit) for commit in commits]
    columns = [count(files) for files in found]
    print(f'| | {" | ".join(commits)} |')
    print('|---' * (len(commits) + 1) + '|')
    for name in columns[0]:
        print(f'| {name} | {" | ".join(c[name] for c in columns)} |')
    for name, lines in long_functions(found[-1]).items():
        print(f'{lines} lines: {name}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
