# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Which layers are quantized, and with how many bits: rules by a name."""

from typing import NamedTuple

from ..errors import QuantConfigError, unknown
from .plain import plain

#: what recipes leave float
_KEPT = ['@prediction', '@offset']


class Scope(NamedTuple):
    """Rules that come after those of a recipe and before the user's.

    Attributes:
        what (str): What they make of a detector, for the documentation.
        rules (list[dict]): Later ones win.
    """

    what: str
    rules: list[dict]


SCOPES = dict(
    repq_det=Scope(
        'all convolutions and linear layers at `bits`, predictions and '
        'offsets too; 8 bits for the input of the stem alone; transposed '
        'convolutions float (RepQ-ViT)',
        [
            dict(match=_KEPT, skip=False),
            dict(match='@stem', weight=dict(bits=None), act=dict(bits=8)),
            dict(match='@transposed', skip=True),
        ],
    ),
    aphq_det=Scope(
        'as `repq_det`, and the input of the stem float (APHQ-ViT)',
        [
            dict(match=_KEPT, skip=False),
            dict(match='@stem', weight=dict(bits=None), act=None),
            dict(match='@transposed', skip=True),
        ],
    ),
    first_last_8=Scope(
        'the stem and predictions in 8 bits, their weights on a uniform '
        'grid; the rest as the recipe says',
        [
            dict(
                match=['@stem', '@prediction'],
                skip=False,
                weight=dict(type='UniformQuantizer', bits=8),
                act=dict(bits=8),
            )
        ],
    ),
    backbone_only=Scope(
        'neck and heads float, encoders and decoders of DETR included; the '
        'backbone as the recipe says',
        [dict(match=['@neck', '@head'], skip=True)],
    ),
)


def scope_rules(name: str) -> list[dict]:
    """The rules of a scope.

    Args:
        name (str): One of :data:`SCOPES`, or ``''`` for none.

    Returns:
        list[dict]: Copies, of plain types.

    Raises:
        QuantConfigError: If there is no such scope.
    """
    if not name:
        return []
    if name not in SCOPES:
        raise QuantConfigError(
            'quant_cfg.scope: ' + unknown('scope', name, SCOPES)
        )
    return [plain(rule) for rule in SCOPES[name].rules]
