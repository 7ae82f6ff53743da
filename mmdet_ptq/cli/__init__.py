# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The commands of ``mmdet-ptq``; files in ``tools/`` are doors to them."""

import argparse
import sys
from collections.abc import Sequence

from . import cost, quantize, report, sensitivity

#: a module by name of its command
COMMANDS = {
    'quantize': quantize,
    'sensitivity': sensitivity,
    'report': report,
    'cost': cost,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code.

    Args:
        argv (Sequence[str], optional): Name of the command and its
            arguments. Defaults to those of the process.
    """
    parser = argparse.ArgumentParser(
        'mmdet-ptq',
        description='Post-training quantization of MMDetection detectors.',
        epilog='mmdet-ptq COMMAND --help lists the arguments of a command.',
    )
    commands = parser.add_subparsers(dest='command', required=True)
    for name, module in COMMANDS.items():
        commands.add_parser(name, help=module.__doc__)
    words = list(sys.argv[1:] if argv is None else argv)
    command = parser.parse_args(words[:1]).command
    return COMMANDS[command].main(words[1:], f'{parser.prog} {command}')
