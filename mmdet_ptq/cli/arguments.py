# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Arguments that several commands have."""

import argparse
from typing import Any

from mmengine.config import DictAction

from ..quant_cfg import SCOPES, recipe_names


class CfgOptions(DictAction):
    """``key=value`` as MMEngine reads it, with its mistakes in words."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """See :class:`mmengine.config.DictAction`."""
        for word in values:
            try:
                if word.startswith('='):
                    raise ValueError('no key')
                super().__call__(parser, namespace, [word], option_string)
            # what it raises without '=', on brackets, and on calls
            except (ValueError, AssertionError, RecursionError):
                parser.error(
                    f'{option_string}: {word!r} must be key=value, with a '
                    "number, a word or a list such as '[a,b]'; what holds "
                    'a dict goes into a config or a recipe file'
                )


def add_what(parser: argparse.ArgumentParser) -> None:
    """Which detector, and what becomes of it."""
    parser.add_argument(
        'config',
        help='config of the float detector; any MMDetection config, '
        'unmodified, a file or mmdet::<config>',
    )
    parser.add_argument(
        'checkpoint',
        nargs='?',
        help='its float checkpoint, a path, a URL or mmdet::<config>; '
        "default: the config's load_from",
    )
    parser.add_argument(
        '--recipe',
        help="recipe name or file; default: the config's quant_cfg, else "
        f'"uniform" ({", ".join(recipe_names())})',
    )
    parser.add_argument(
        '--bits',
        help='w<bits>a<bits>[s<bits>], 2 to 8: weights, activations, inputs '
        'that come from a softmax, e.g. w4a4s3; default w8a8',
    )
    parser.add_argument(
        '--scope',
        help='which layers are quantized, and which of them in 8 bits; '
        f'default: as the recipe says ({", ".join(SCOPES)})',
    )
    parser.add_argument(
        '--iters',
        type=int,
        help='steps of a reconstruction for each unit; default: as the '
        'recipe says',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=CfgOptions,
        help='override settings of the config, key=value',
    )


def add_calibration(parser: argparse.ArgumentParser) -> None:
    """On which images."""
    parser.add_argument(
        '--calib-num',
        type=int,
        help='number of calibration images; default 32',
    )
    parser.add_argument(
        '--calib-source',
        help='"train", "test" or a folder of images; default train',
    )


def add_run(parser: argparse.ArgumentParser) -> None:
    """Where and how it runs."""
    parser.add_argument(
        '--work-dir',
        help='where artefact, result and logs go; default '
        './work_dirs/<config name>',
    )
    parser.add_argument(
        '--device', help='e.g. cpu or cuda:0; default: a GPU if there is one'
    )
    parser.add_argument(
        '--resume',
        action='store_true',
        help='go on where a killed run stopped',
    )
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='load a checkpoint that holds arbitrary objects, which can run '
        'code',
    )
