# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Strip a training checkpoint to weights that load with `weights_only`.

The checkpoints that mmengine's runner saves hold the optimizer and Python
objects, and do not load with ``torch.load(weights_only=True)``, PyTorch's
default. The file written here holds tensors and plain types alone::

    python -m tools.data.strip_checkpoint SRC DST --half --trust-checkpoint
"""

import argparse
from pathlib import Path

import torch


def plain(value):
    """Turn a value into plain Python types.

    Args:
        value (object): Numbers, strings, and containers of these.

    Returns:
        object: The same in ``dict``, ``list``, ``str``, ``bool``, ``int``,
        ``float`` or ``None``; anything else becomes its ``str``.
    """
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def strip_checkpoint(src, dst, half=False, keep_prefix=(), trust=False):
    """Write the weights of a checkpoint and the names of its classes.

    Args:
        src (str | Path): Checkpoint of a training.
        dst (str | Path): File to write.
        half (bool): Store floating point tensors as float16, else as
            float32. Defaults to False.
        keep_prefix (Sequence[str]): Keep only weights whose names start
            with one of these. Defaults to (), which keeps all.
        trust (bool): Unpickle arbitrary objects of ``src``, which can run
            any code: only for files that you made. Defaults to False.

    Returns:
        int: Number of weights kept.
    """
    loaded = torch.load(src, map_location='cpu', weights_only=not trust)
    state = loaded.get('state_dict', loaded)
    dtype = torch.float16 if half else torch.float32
    prefixes = tuple(keep_prefix) or ('',)
    kept = {
        name: (
            tensor.to(dtype) if tensor.is_floating_point() else tensor
        ).clone()
        for name, tensor in state.items()
        if name.startswith(prefixes)
    }
    if not kept:
        raise ValueError(f'{src} has no weights that start with {prefixes}')
    infinite = [
        name
        for name, tensor in kept.items()
        if not torch.isfinite(tensor.float()).all()
    ]
    if infinite:
        raise ValueError(f'not finite as {dtype}: {infinite}')
    meta = {}
    if 'meta' in loaded:
        meta['dataset_meta'] = plain(loaded['meta'].get('dataset_meta', {}))
    Path(dst).parent.mkdir(parents=True, exist_ok=True)
    torch.save({'state_dict': kept, 'meta': meta}, dst)
    torch.load(dst, map_location='cpu', weights_only=True)
    return len(kept)


def main():
    """Command line of the tool."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('src', help='checkpoint of a training')
    parser.add_argument('dst', help='file to write')
    parser.add_argument(
        '--half', action='store_true', help='store float16, not float32'
    )
    parser.add_argument(
        '--keep-prefix',
        nargs='+',
        default=(),
        help='keep only weights with these prefixes, such as backbone.',
    )
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='unpickle any object in SRC, which can run any code; '
        'only for files that you made',
    )
    args = parser.parse_args()
    count = strip_checkpoint(
        args.src, args.dst, args.half, args.keep_prefix, args.trust_checkpoint
    )
    size = Path(args.dst).stat().st_size / 2**20
    print(f'{args.dst}: {count} weights, {size:.2f} MiB')


if __name__ == '__main__':
    main()
