# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The saved quantized model: packed codes, tensors and a plain manifest."""

import json
import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..calibration.store import write_atomic
from ..errors import (
    CheckpointError,
    NumericError,
    PTQError,
    QuantConfigError,
)
from ..layers import (
    convert,
    named_tensors,
    non_finite,
    quant_layers,
    restore_tensors,
)
from ..plan import attach, plan_of, plan_to_dict
from ..structures import QuantPlan
from ..surgery import Edit, FoldedNorm, decompose, edits_of
from ..version import __version__
from .guard import KEY, NeedsConfigOfWorkDir
from .meta import decode_meta, encode_meta

FORMAT = 2


def is_artefact(checkpoint: dict) -> bool:
    """Whether a loaded file was written by :func:`save_artefact`."""
    return KEY in checkpoint


def save_artefact(
    path: str | Path,
    model: nn.Module,
    plan: QuantPlan,
    edits: list[Edit],
    settings: dict,
    dataset_meta: dict,
) -> None:
    """Writes a quantized model; an older file survives a failure.

    Args:
        path (str | Path): Where to.
        model (nn.Module): Quantized and baked.
        plan (QuantPlan): Its quantizers.
        edits (list[Edit]): Changes of the float model, in order.
        settings (dict): The spelled-out ``quant_cfg``.
        dataset_meta (dict): Classes, palette and the like; arrays and
            tuples come back as such.

    Raises:
        PTQError: If it cannot be written.
        NumericError: If a tensor of the model holds NaN or Inf; names it.
    """
    layers = quant_layers(model)
    manifest = dict(
        format=FORMAT,
        version=__version__,
        quant_cfg=settings,
        edits=[edit.to_dict() for edit in edits],
        levels={n: m.levels for n, m in layers.items()},
        heads=sorted(
            {n.partition('.')[0] for n, m in layers.items() if m.by_head}
        ),
        **plan_to_dict(plan),
    )
    tensors = named_tensors(model)
    _check_finite(tensors)
    codes = _packed_weights(model, tensors)
    for name in codes:
        del tensors[f'{name}.weight']
    saved = OrderedDict(
        meta={'dataset_meta': encode_meta(dataset_meta)}
        if dataset_meta
        else {},
        **{KEY: json.loads(json.dumps(manifest))},
        tensors=tensors,
        codes=codes,
    )
    saved._metadata = NeedsConfigOfWorkDir()
    write_atomic(saved, path)


def _check_finite(tensors: dict[str, Tensor]) -> None:
    wrong = non_finite(tensors)
    if wrong:
        more = f' and {len(wrong) - 8} more' if len(wrong) > 8 else ''
        raise NumericError(
            f'the quantized model is not saved: {", ".join(wrong[:8])}{more} '
            'must be finite and holds NaN or Inf; if it does so in the float '
            'checkpoint already, mend that, else calibrate on other images '
            'or keep the layer float by a rule with skip=True'
        )


def _packed_weights(
    model: nn.Module, tensors: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Codes of the quantized weights, by the layer that they are named for.

    A weight that is not on the grid of its quantizer stays as it is: what
    was simulated is what is saved.
    """
    packed = {}
    for name, layer in quant_layers(model).items():
        quantizer = layer.weight_quantizer
        # one that several layers have is named for the first
        if quantizer is None or f'{name}.weight' not in tensors:
            continue
        weight = layer.weight.detach()
        encoding = quantizer.encoding(weight)
        codes = encoding.encode(weight)
        if torch.equal(encoding.decode(codes).to(weight.dtype), weight):
            packed[name] = encoding.pack(codes)
        else:
            print_log(
                f'{name}: its weight is not on the grid of its quantizer and '
                'is saved in full',
                'current',
                logging.WARNING,
            )
    return packed


def saved_meta(saved: dict) -> dict:
    """What the data set of a loaded file says of itself.

    Args:
        saved (dict): The file.
    """
    return decode_meta(saved.get('meta', {}).get('dataset_meta') or {})


def settings_of(saved: dict) -> dict:
    """The spelled-out ``quant_cfg`` that made a loaded file.

    Args:
        saved (dict): The file.
    """
    return saved[KEY].get('quant_cfg') or {}


def load_artefact(model: nn.Module, saved: dict) -> QuantPlan:
    """Makes a float model of the same config into the saved one.

    Args:
        model (nn.Module): As its config builds it; changed in place.
        saved (dict): The loaded file.

    Returns:
        QuantPlan: The plan it was quantized by.

    Raises:
        CheckpointError: If the file is of another format or another model,
            or the model is quantized already. Where the message says so,
            the model is changed in part.
    """
    manifest = saved[KEY]
    if quant_layers(model):
        raise CheckpointError(
            'the model is quantized already; build it anew from its config '
            'and load the quantized checkpoint into that'
        )
    if manifest.get('format') not in (1, FORMAT):
        raise CheckpointError(
            f'the quantized checkpoint has format {manifest.get("format")}, '
            f'this version of mmdet_ptq reads 1 and {FORMAT}'
        )
    try:
        return _rebuild(model, saved, manifest)
    except (
        PTQError,
        AttributeError,
        KeyError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise CheckpointError(
            f'{_why(error)} The model is changed in part and of no use now; '
            'to go on, build it anew from its config.'
        ) from error


def _why(error: Exception) -> str:
    """What is wrong with a file that cannot be loaded."""
    if isinstance(error, CheckpointError):
        return str(error)
    if isinstance(error, QuantConfigError):
        return (
            'the quantized checkpoint uses a part that this version does '
            f'not have: {error} If it comes from outside the package, '
            'import the module that registers it, e.g. by custom_imports '
            'in the config.'
        )
    return (
        'the quantized checkpoint is damaged or of another architecture '
        f'than the config: {type(error).__name__}: {error}.'
    )


def _edits(model: nn.Module, manifest: dict) -> list[Edit]:
    """The edits to rebuild, in order."""
    if manifest['format'] > 1:
        return edits_of(manifest['edits'])
    # whatever can be decomposed was, and nothing else but folds was done
    decompose(model)
    return [FoldedNorm(n, layer) for n, layer in manifest['folds'].items()]


def _rebuild(model: nn.Module, saved: dict, manifest: dict) -> QuantPlan:
    plan = plan_of(manifest)
    for edit in _edits(model, manifest):
        edit.rebuild(model)
    convert(model)
    layers = quant_layers(model)
    missing = [n for n in plan.layers if n not in layers]
    if missing:
        raise CheckpointError(
            'the quantized checkpoint is of another architecture than the '
            f'config, which does not have these {len(missing)} layers: '
            f'{", ".join(missing[:8])}. Use the config it was made with.'
        )
    attach(model, plan, manifest['levels'], manifest.get('heads', ()))
    tensors = dict(saved['tensors'])
    for name in saved['codes']:
        # the decoded weight has to wait for the scale of its quantizer
        tensors[f'{name}.weight'] = layers[name].weight.detach()
    restore_tensors(model, tensors)
    for name, packed in saved['codes'].items():
        _decode_weight(layers[name], packed)
    for layer in layers.values():
        layer.set_baked()
    model.eval()
    return plan


def _decode_weight(layer: Any, packed: Tensor) -> None:
    encoding = layer.weight_quantizer.encoding()
    codes = encoding.unpack(packed, layer.weight.shape)
    weight = encoding.decode(codes.to(layer.weight.device))
    layer.weight.data.copy_(weight)
