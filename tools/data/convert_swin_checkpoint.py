# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Renames the weights of the Swin authors' detectors for MMDetection 3.x.

Their repository, Swin-Transformer-Object-Detection, builds on MMDetection
2.x with a backbone of its own. The papers on quantized Swin detectors start
from its checkpoints::

    python -m tools.data.convert_swin_checkpoint SRC DST --trust-checkpoint

DST loads strictly into the detectors of ``configs/ptq/_base_/transformers``.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from tools.data.strip_checkpoint import plain

#: their names of parts of a block, and MMDetection's
BLOCK = (
    ('.attn.', '.attn.w_msa.'),
    ('.mlp.fc1.', '.ffn.layers.0.0.'),
    ('.mlp.fc2.', '.ffn.layers.1.'),
)


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames weights, and reorders those that merge patches.

    Four neighbouring patches become one of four times the channels. The Swin
    authors put patch after patch, (0, 0), (1, 0), (0, 1), (1, 1) in rows and
    columns; MMDetection takes what ``nn.Unfold`` gives: channel after
    channel, and (0, 0), (0, 1), (1, 0), (1, 1) within.

    Args:
        state (Mapping): Of a detector of theirs.

    Returns:
        dict[str, Tensor]: Of MMDetection's.

    Raises:
        ValueError: If it has no such backbone.
    """
    if not any(name.startswith('backbone.layers.') for name in state):
        raise ValueError(
            'no backbone.layers.*: these are not weights of '
            'Swin-Transformer-Object-Detection; MMDetection 3.x calls them '
            'backbone.stages.* and needs no conversion'
        )
    found = {}
    for name, value in state.items():
        if '.downsample.' in name:
            value = merged(value)
        found[renamed(name)] = value
    return found


def renamed(name: str) -> str:
    """MMDetection's name of one of their weights."""
    if not name.startswith('backbone.'):
        return name
    name = name.replace('backbone.layers.', 'backbone.stages.')
    name = name.replace('.patch_embed.proj.', '.patch_embed.projection.')
    for old, new in BLOCK:
        name = name.replace(old, new)
    return name


def merged(value: Tensor) -> Tensor:
    """Weights over merged patches in MMDetection's order.

    Args:
        value (Tensor): Its last axis has four patches of C channels each.
    """
    patches = value.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :]
    return patches.transpose(-1, -2).flatten(-2)


def main() -> None:
    """Command line of the tool."""
    parser = argparse.ArgumentParser(
        description='Renames the weights of a detector of '
        'Swin-Transformer-Object-Detection for MMDetection 3.x.'
    )
    parser.add_argument('src', help='their checkpoint')
    parser.add_argument('dst', help='file to write')
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='unpickle any object in SRC, which can run any code; only for '
        'files that you trust',
    )
    args = parser.parse_args()
    trusted = args.trust_checkpoint
    loaded = torch.load(args.src, map_location='cpu', weights_only=not trusted)
    state = convert(loaded.get('state_dict', loaded))
    classes = (loaded.get('meta') or {}).get('CLASSES')
    meta = dict(dataset_meta=dict(classes=plain(classes))) if classes else {}
    Path(args.dst).parent.mkdir(parents=True, exist_ok=True)
    torch.save(dict(state_dict=state, meta=meta), args.dst)
    print(f'{args.dst}: {len(state)} weights')


if __name__ == '__main__':
    main()
