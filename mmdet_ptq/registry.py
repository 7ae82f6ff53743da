# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Registries of the parts that a ``quant_cfg`` names.

Runner, loop and hooks go to MMEngine's root registries, so that bare names
resolve under ``default_scope='mmdet'``. The parts below are our own; build
them with :func:`build_from`, which pins the scope and explains mistakes.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, TypeVar, get_type_hints

from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import Registry
from torch import nn

from .checks import annotated, is_list
from .errors import RENAMED, QuantConfigError, unknown

_SCOPE = 'mmdet_ptq'
# So that a config may inherit by _base_ = 'mmdet_ptq::...'. MMEngine asks
# pip where a package lies, which an editable install does not know; where a
# module lies Python knows.
MODULE2PACKAGE[_SCOPE] = 'mmdet_ptq.version'

QUANTIZERS = Registry(
    'quantizer', scope=_SCOPE, locations=['mmdet_ptq.quantizers']
)
OBSERVERS = Registry(
    'observer', scope=_SCOPE, locations=['mmdet_ptq.observers']
)
PASSES = Registry('pass', scope=_SCOPE, locations=['mmdet_ptq.passes'])
LEARNERS = Registry(
    'learner', scope=_SCOPE, locations=['mmdet_ptq.passes.reconstruct']
)
LOSSES = Registry('loss', scope=_SCOPE, locations=['mmdet_ptq.losses'])
EDITS = Registry('edit', scope=_SCOPE, locations=['mmdet_ptq.surgery'])
#: Detector adapters, chosen by the class of the head and never by a name in
#: a config. To teach the package a new head, register a subclass of
#: ``mmdet_ptq.detectors.Adapter``; its docstring says what to write.
ADAPTERS = Registry('adapter', scope=_SCOPE, locations=['mmdet_ptq.detectors'])

T = TypeVar('T', bound=type)


def find_class(registry: Registry, name: object) -> type:
    """Looks a class up by its registered name.

    Args:
        registry (Registry): One of the registries of this module.
        name (object): The name as given in a config.

    Returns:
        type: The registered class.

    Raises:
        QuantConfigError: If nothing of that name is registered.
    """
    registry.import_from_location()
    if name not in registry.module_dict:
        raise QuantConfigError(
            unknown(registry.name, name, registry.module_dict, RENAMED)
        )
    return registry.module_dict[name]


@cache
def arguments_of(cls: type) -> Mapping[str, inspect.Parameter]:
    """The keyword arguments that a class takes in a config.

    Args:
        cls (type): Bases count where it hands on what it does not know.

    Returns:
        Mapping[str, inspect.Parameter]: By name, with default and
        annotation.
    """
    found: dict[str, inspect.Parameter] = {}
    for klass in cls.__mro__:
        init = klass.__dict__.get('__init__')
        if init is None:
            continue
        params = list(inspect.signature(init).parameters.values())[1:]
        try:
            hints = get_type_hints(init)
        except NameError:  # a name that only type checkers import
            hints = {}
        for p in params:
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
                hint = hints.get(p.name, Any)
                found.setdefault(p.name, p.replace(annotation=hint))
        if not any(p.kind is p.VAR_KEYWORD for p in params):
            break
    return MappingProxyType(found)


def check_arguments(
    registry: Registry, cfg: dict, where: str, hidden: Iterable[str] = ()
) -> type:
    """Checks ``type`` and the argument names of a config dict.

    Args:
        registry (Registry): Where ``cfg['type']`` is looked up.
        cfg (dict): ``type`` and keyword arguments.
        where (str): The place in ``quant_cfg``, for the message.
        hidden (Iterable[str]): Arguments that nobody writes, so that no
            message offers them.

    Returns:
        type: The class that ``cfg['type']`` names.

    Raises:
        QuantConfigError: On an unknown type or argument.
    """
    if not isinstance(cfg, dict) or 'type' not in cfg:
        raise QuantConfigError(
            f"{where}: expected a dict with a 'type', got {cfg!r}"
        )
    try:
        cls = find_class(registry, cfg['type'])
    except QuantConfigError as error:
        raise QuantConfigError(f'{where}: {error}') from None
    allowed = arguments_of(cls)
    for key in cfg:
        if key != 'type' and key not in allowed:
            what = f'argument of {cfg["type"]}'
            raise QuantConfigError(
                f'{where}: '
                + unknown(what, key, set(allowed) - set(hidden), RENAMED)
            )
    return cls


def build_from(
    registry: Registry, cfg: dict, where: str = '', **defaults: Any
) -> Any:
    """Builds an object from a config dict.

    Args:
        registry (Registry): Where ``cfg['type']`` is looked up.
        cfg (dict): ``type`` and keyword arguments.
        where (str): The place in ``quant_cfg``, for messages. Defaults to
            the registry's name.
        **defaults: Arguments used where ``cfg`` does not set them.

    Returns:
        Any: The new object.

    Raises:
        QuantConfigError: On an unknown type or argument, or a value that
            the class refuses or that is not of the annotated type.
    """
    where = where or registry.name
    cls = check_arguments(registry, cfg, where)
    args = {**defaults, **{k: v for k, v in cfg.items() if k != 'type'}}
    try:
        # a class that takes a list would take a string letter by letter
        _check_types(cls, cfg, is_list)
        try:
            built = cls(**args)
        except TypeError:
            _check_types(cls, cfg)
            raise
        _check_types(cls, cfg)
    except (TypeError, ValueError) as error:
        raise QuantConfigError(f'{where}: {cfg["type"]}: {error}') from error
    return built


def _check_types(
    cls: type, cfg: dict, of: Callable[[Any], bool] = lambda _: True
) -> None:
    """What a class does not check itself: values of another type."""
    for name, parameter in arguments_of(cls).items():
        if name in cfg and of(parameter.annotation):
            annotated(name, cfg[name], parameter.annotation)


class TwinRegistry:
    """Classes that stand in for a module class, keyed by that class.

    Lookup is by exact class: a subclass may compute something else in its
    forward, so it has to be named to be replaced.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._twins: dict[type, type] = {}

    def implements(self, *classes: type[nn.Module]) -> Callable[[T], T]:
        """Class decorator: registers a twin for each given class."""

        def register(twin: T) -> T:
            for cls in classes:
                if cls in self._twins:
                    raise KeyError(f'{cls} already has a twin')
                self._twins[cls] = twin
            return twin

        return register

    def get(self, cls: type) -> type | None:
        """The twin of exactly this class, or None."""
        return self._twins.get(cls)

    def __contains__(self, cls: type) -> bool:
        return cls in self._twins

    def twins(self) -> set[type]:
        """Every registered twin class."""
        return set(self._twins.values())


#: quantized twins of leaf layers (conv, linear, matmul ...)
QUANT_LAYERS = TwinRegistry('quantized layer')
#: float modules whose inner products become leaf layers of their own
DECOMPOSED = TwinRegistry('decomposed module')
#: float modules that pad what they are given, by classes that can pad with a
#: value for each channel
PADDED = TwinRegistry('padding module')
