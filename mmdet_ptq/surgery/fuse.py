# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Weights that are computed in every forward, made plain parameters.

Weight and spectral norms, pruning masks and other parametrizations give the
same weight in every forward of a trained model. It is computed once, and the
layer goes on as an ordinary one.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import (
    parametrize,
    prune,
    remove_spectral_norm,
    remove_weight_norm,
)
from torch.nn.utils.spectral_norm import (
    SpectralNorm,
    SpectralNormLoadStateDictPreHook,
)
from torch.nn.utils.weight_norm import WeightNorm

from ..errors import PTQError
from ..registry import EDITS, QUANT_LAYERS
from .edits import Edit
from .modules import find_module

HOOKS = {
    WeightNorm: remove_weight_norm,
    SpectralNorm: remove_spectral_norm,
    prune.BasePruningMethod: prune.remove,
}


@EDITS.register_module()
@dataclass
class FusedWeight(Edit):
    """A module whose computed parameters became plain ones.

    Attributes:
        module (str): Name of the module.
    """

    module: str

    def apply(self, model: nn.Module) -> None:
        """See :meth:`Edit.apply`; the numbers are those of eval mode."""
        module = find_module(model, self.module)
        computed = _computed(module)
        if not computed:
            raise PTQError(
                f'cannot fuse {self.module!r}: none of its parameters is '
                'computed by a hook or a parametrization'
            )
        for name in computed:
            _fuse(module, name)

    def rebuild(self, model: nn.Module) -> None:
        """See :meth:`Edit.rebuild`; what is plain already stays."""
        if _computed(find_module(model, self.module)):
            self.apply(model)


def fuse_weights(model: nn.Module) -> tuple[list[FusedWeight], dict[str, str]]:
    """Makes every computed weight a plain parameter.

    Args:
        model (nn.Module): In eval mode; changed in place, computes the same
            as before.

    Returns:
        tuple[list[FusedWeight], dict[str, str]]: The edits that were made,
        and layers whose weight is still no parameter, with the reason.
    """
    made, refused = [], {}
    for name, module in list(model.named_modules()):
        computed = _computed(module)
        moving = [n for n in computed if not _constant(module, n)]
        if moving:
            refused[name] = (
                f'its {", ".join(moving)} is computed anew, and otherwise, '
                'in every forward'
            )
        elif computed:
            made.append(FusedWeight(name))
            made[-1].apply(model)
        elif type(module) in QUANT_LAYERS and _no_parameter(module):
            refused[name] = 'its weight is no parameter but set from outside'
    return made, refused


def copy_model(model: nn.Module) -> nn.Module:
    """A deep copy, also of a model whose weights are computed.

    PyTorch copies no tensor with a history. Weights that a hook computed, or
    that are set from outside, have none in the copy.

    Args:
        model (nn.Module): Of any kind.

    Returns:
        nn.Module: It shares no tensor with the model.
    """
    computed = [
        value
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    ]
    return copy.deepcopy(
        model, {id(value): value.detach().clone() for value in computed}
    )


def _no_parameter(module: nn.Module) -> bool:
    return isinstance(
        module.__dict__.get('weight', module._buffers.get('weight')), Tensor
    )


def _computed(module: nn.Module) -> list[str]:
    """Names of the parameters of a module that are computed."""
    found = [_name(hook) for _, hook in _hooks(module)]
    if parametrize.is_parametrized(module):
        found += [
            name
            for name, chain in module.parametrizations.items()
            if any(True for _ in chain.parameters())
        ]
    return found


def _hooks(module: nn.Module) -> list[tuple[type, object]]:
    return [
        (kind, hook)
        for hook in module._forward_pre_hooks.values()
        for kind in HOOKS
        if isinstance(hook, kind)
    ]


def _name(hook: object) -> str:
    pruned = isinstance(hook, prune.BasePruningMethod)
    return hook._tensor_name if pruned else hook.name


@torch.no_grad()
def _value(module: nn.Module, name: str) -> Tensor:
    """What a forward would use just now."""
    for _, hook in _hooks(module):
        if _name(hook) == name:
            # a checkpoint may have been loaded since the last forward
            hook(module, ())
    return getattr(module, name).detach().clone()


def _constant(module: nn.Module, name: str) -> bool:
    return torch.equal(_value(module, name), _value(module, name))


def _forget_loading(module: nn.Module) -> None:
    """Removes what reads a spectral norm's state, which torch leaves."""
    loading = module._load_state_dict_pre_hooks
    for key, found in list(loading.items()):
        inner = getattr(found, 'hook', found)  # torch wraps it
        if isinstance(inner, SpectralNormLoadStateDictPreHook):
            del loading[key]


def _fuse(module: nn.Module, name: str) -> None:
    value = _value(module, name)
    for kind, hook in _hooks(module):
        if _name(hook) == name:
            original = module._parameters.get(f'{name}_orig')
            if original is not None:
                # pruning writes into it, and another module may own it too
                module._parameters[f'{name}_orig'] = nn.Parameter(
                    original.detach().clone()
                )
            HOOKS[kind](module, name)
            _forget_loading(module)
    if parametrize.is_parametrized(module, name):
        single = module.parametrizations[name].is_tensor
        # copies of a module have its class, which torch changes
        kind = type(module)
        module.__class__ = type(kind.__name__, kind.__bases__, {**vars(kind)})
        parametrize.remove_parametrizations(
            module, name, leave_parametrized=not single
        )
    # torch leaves a buffer where gradients are off
    for own in (module._parameters, module._buffers):
        own.pop(name, None)
    module.register_parameter(name, nn.Parameter(value))
