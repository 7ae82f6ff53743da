# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What a dataset says of itself, in types that any loader takes.

Numbers, strings, lists, tuples, dicts and tensors go into a file as they
are. Arrays and numbers of NumPy become a dict of plain types, since a
loader that executes nothing refuses them.
"""

from typing import Any

import numpy as np
from mmengine.logging import print_log
from torch import Tensor

_ARRAY = 'mmdet_ptq.array'
_PLAIN = (type(None), bool, int, float, str, bytes)


def encode_meta(meta: dict) -> dict:
    """Meta as it stands in a file.

    Args:
        meta (dict): Nested dicts, lists and tuples of plain types, tensors
            and arrays. A key that holds anything else is left out with a
            warning.

    Returns:
        dict: For :func:`decode_meta`.
    """
    kept = {}
    for key, value in meta.items():
        try:
            kept[key] = _encode(value)
        except TypeError as error:
            print_log(
                f'dataset_meta[{key!r}] is not saved: {error}', 'current', 30
            )
    return kept


def decode_meta(meta: dict) -> dict:
    """Meta as it was; leaves alone what is decoded already.

    Args:
        meta (dict): From :func:`encode_meta`.
    """
    return {key: _decode(value) for key, value in meta.items()}


def _encode(value: Any) -> Any:
    if type(value) in _PLAIN or type(value) is Tensor:
        return value
    if isinstance(value, np.ndarray | np.generic):
        kind, size = value.dtype.kind, value.dtype.itemsize
        if kind not in 'biufUS' or (kind == 'f' and size > 8):
            raise TypeError(f'it holds an array of {value.dtype}')
        return {
            _ARRAY: value.tolist(),
            'dtype': value.dtype.str,
            'shape': list(value.shape),
        }
    if isinstance(value, dict):
        odd = [k for k in value if isinstance(k, np.generic)]
        if odd:
            raise TypeError(f'it holds a {type(odd[0]).__name__} as a key')
        return {_encode(k): _encode(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_encode, value))
    if isinstance(value, list):
        return list(map(_encode, value))
    raise TypeError(f'it holds a {type(value).__name__}')


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        if _ARRAY not in value:
            return {k: _decode(v) for k, v in value.items()}
        array = np.array(value[_ARRAY], dtype=value['dtype'])
        # of shape (): the number itself
        return array.reshape(value['shape'])[()]
    if isinstance(value, tuple | list):
        return type(value)(map(_decode, value))
    return value
