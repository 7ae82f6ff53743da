# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Autograd functions of extensions, which a torch function mode misses."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def extension_functions(
    wrap: Callable[[str, Callable], Callable],
) -> Iterator[None]:
    """Wraps their forwards for a while.

    Those of mmcv's ops run below the torch function mode. Often only
    ``apply`` is imported, but that looks up ``forward`` on the class when
    it is called.

    Args:
        wrap (Callable): Given name and forward of a class, returns what is
            to run in its place.
    """
    originals = [
        (c, c.__dict__['forward'])
        for c in _subclasses(torch.autograd.Function)
        if isinstance(c.__dict__.get('forward'), staticmethod)
        and not c.__module__.startswith('torch.')
    ]
    try:
        for cls, original in originals:
            cls.forward = staticmethod(wrap(cls.__name__, original.__func__))
        yield
    finally:
        for cls, original in originals:
            cls.forward = original


def _subclasses(cls: type) -> list[type]:
    found: dict[type, None] = {}
    for sub in cls.__subclasses__():
        found[sub] = None
        found.update(dict.fromkeys(_subclasses(sub)))
    return list(found)
