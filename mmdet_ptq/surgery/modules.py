# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Modules of a model by name, and where they hang."""

from collections.abc import Iterator

from torch import nn

from ..errors import PTQError


def find_module(model: nn.Module, name: str) -> nn.Module:
    """A module by any of its names.

    Raises:
        PTQError: If the model has none of that name.
    """
    module: nn.Module | None = model
    for part in name.split('.') if name else ():
        module = module._modules.get(part) if module is not None else None
    if module is None:
        raise PTQError(f'the model has no module {name!r}')
    return module


def places_of(
    model: nn.Module, module: nn.Module
) -> Iterator[tuple[nn.Module, str]]:
    """Every parent of a module, with the name it goes by there.

    ``model.modules()`` would do, and takes most of the time of a hundred
    folds: it makes all names.
    """
    waiting, known = [model], {model}
    while waiting:
        parent = waiting.pop()
        for name, child in list(parent._modules.items()):
            if child is module:
                yield parent, name
            if child is not None and child not in known:
                known.add(child)
                waiting.append(child)
