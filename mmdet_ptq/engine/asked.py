# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Settings that a user asks of a checkpoint that is quantized already."""

from typing import Any

from ..errors import CheckpointError

_ADVICE = (
    'give the float checkpoint to quantize anew, or leave the settings out '
    'to test this one'
)


def check_asked(asked: dict[str, Any], made_with: dict, path: str) -> None:
    """Refuses settings that the checkpoint was not quantized with.

    Args:
        asked (dict): Parts of a spelled-out ``quant_cfg``, e.g. ``bits`` and
            ``calibration``; a part that is a dict may be incomplete.
        made_with (dict): The spelled-out ``quant_cfg`` in the checkpoint.
        path (str): The checkpoint, for the message.

    Raises:
        CheckpointError: Names what differs.
    """
    wrong = list(dict.fromkeys(_differences(asked, made_with)))
    if wrong:
        raise CheckpointError(
            f'{path} is quantized already, with other settings than asked '
            f'for: {", ".join(wrong)}; {_ADVICE}'
        )


def _differences(asked: dict[str, Any], made_with: dict) -> list[str]:
    found = []
    for key, value in asked.items():
        have = made_with.get(key)
        if isinstance(value, dict) and isinstance(have, dict):
            found += _differences(value, have)
        elif value != have and key in ('rules', 'passes'):
            found.append('rules and passes of another recipe')
        elif value != have:
            found.append(f'{key} is {have!r}, not {value!r}')
    return found
