# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What every quantized twin shares.

A twin is a subclass of the layer it replaces, and a layer becomes its twin
in place (``layer.__class__ = twin``). Parameter names, hooks and every
reference to the module stay valid, so a convolution that several heads
share stays one object.
"""

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..context import current
from ..errors import PTQError
from ..quantizers import BaseQuantizer
from .changes import Changes


class CallKey:
    """What a layer and the copies that exporters make of it share.

    ``torch.export`` runs a shallow copy of a module that shares another one
    with a second, a new copy in every call.

    Args:
        name (str): Name of the layer, for messages.
    """

    def __init__(self, name: str) -> None:
        self.name = name


class QuantLayer(Changes, nn.Module):
    """Mixin of all twins: quantizes inputs and weight around the forward.

    The forward of the replaced class runs unchanged, on quantized inputs
    and with its quantized weight. Attributes are for reading; they change
    through the methods of :class:`Changes`. Forwards change nothing of the
    layer, so threads can share it.

    Attributes:
        ports (tuple[str, ...]): Names of the tensor arguments that can be
            quantized, in argument order.
        weight_axis (int, optional): Output channel axis of the weight;
            None if the layer has no weight.
        act_axis (int): Channel axis of the inputs. Convolutions count it
            from the end: their maps are (N, C, H, W) or (C, H, W).
        row_axes (Mapping[str, int]): By port, the axis along which a row of
            it lies: what is summed up. Convolutions have none.
        has_groups (bool): Whether it is a convolution, with groups of input
            channels.
        weight_quantizer (BaseQuantizer, optional): None leaves the weight
            float.
        act_quantizers (nn.ModuleDict): Quantizers by port.
        quantize_weight (bool): Whether the weight is quantized now.
        quantize_act (bool): Whether the inputs are quantized now.
        rounded (Tensor, optional): Quantized weight where it is not the
            nearest value, set by reconstruction.
        bias_shift (Tensor, optional): What the quantized weight asks of the
            bias, shape (out_channels, ).
        weight_source (Callable, optional): Gives the quantized weight while
            it is being learned.
        drop_prob (float): Share of the elements of the inputs that are left
            float (QDrop); 0 but in reconstruction. Drawn from
            ``generator``.
        input_factors (Tensor, optional): ``[C]``, by which input channels
            are divided before anything else; there only after a
            ``ScaledInput``, which has the weight make up for it.
        input_shift (Tensor, optional): ``[C]``, subtracted then.
        baked (bool): Whether the weight itself is the quantized one.
        tied (bool): Whether another module has its weight or bias too. Such
            a layer is quantized and neither learned nor corrected, which
            would change the other.
        call_key (CallKey): By which contexts count its calls.
        levels (int): Calls in one forward of the detector, or of its head;
            which of them a call is, is known to :mod:`mmdet_ptq.context`.
        by_head (bool): Whether levels are counted from the call of the part
            of the detector that holds the layer.
    """

    ports: ClassVar[tuple[str, ...]] = ('input',)
    weight_axis: ClassVar[int | None] = 0
    act_axis: ClassVar[int] = -3
    row_axes: ClassVar[Mapping[str, int]] = MappingProxyType({})
    has_groups: ClassVar[bool] = False

    def init_twin(self, name: str = '') -> None:
        """Adds the state of a twin to a module that just became one.

        Args:
            name (str): Its name in the model, for messages.
        """
        self.weight_quantizer: BaseQuantizer | None = None
        # float mode is without these two
        self.register_buffer('rounded', None, persistent=False)
        self.register_buffer('bias_shift', None, persistent=False)
        self.weight_source: Callable[[], Tensor] | None = None
        self.drop_prob = 0.0
        self.generator: torch.Generator | None = None
        self.act_quantizers = nn.ModuleDict()
        self.quantize_weight = True
        self.quantize_act = True
        self.baked = False
        self.tied = False
        self.levels = 1
        self.by_head = False
        self.call_key = CallKey(name)
        self._listeners: tuple = ()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the replaced class's forward on quantized operands."""
        if kwargs:
            args = self._positional(args, kwargs)
        shadows = self.float_branches(*args)
        level = 0 if self.levels == 1 else self._take_level()
        inputs = [
            self._input(port, level, x)
            for port, x in zip(self.ports, args, strict=False)
        ]
        shadows.update(self.operands())
        return super(QuantLayer, self._behind(shadows)).forward(
            *inputs, *args[len(inputs) :], **kwargs
        )

    def _positional(self, args: tuple, kwargs: dict[str, Any]) -> tuple:
        """``args`` with the inputs that were given by name, taken out."""
        names = inspect.signature(super().forward).parameters
        for name in list(names)[len(args) : len(self.ports)]:
            if name not in kwargs:
                break
            args = (*args, kwargs.pop(name))
        return args

    def _take_level(self) -> int:
        """Pyramid level of the call that starts now.

        Raises:
            PTQError: If it decides a range and is not known.
        """
        forward = current()
        if (
            not forward.knows(self.call_key)
            and self.quantize_act
            and self.has_level_ranges()
        ):
            raise PTQError(
                f'{self.call_key.name}: it has ranges for {self.levels} '
                'pyramid levels, and which of them this call is, is known '
                'only inside a call of the detector or of its head; call one '
                'of these (not its forward), or run one forward inside '
                'mmdet_ptq.context.forward_context()'
            )
        return forward.take_level(self.call_key, self.levels)

    def has_level_ranges(self) -> bool:
        """Whether the pyramid level of a call decides a range."""
        return self.levels > 1 and any(
            q.per_level for q in self.act_quantizers.values()
        )

    def float_branches(self, *args: Any) -> dict[str, Any]:
        """Attributes to replace by what comes of the float inputs."""
        return {}

    def operands(self) -> dict[str, Any]:
        """Attributes to replace during the forward: weight and bias."""
        # the cheap questions first: a GPU waits for the answers
        if (
            self.baked
            or not self.quantize_weight
            or self.weight_quantizer is None
        ):
            return {}
        found = {'weight': self.quantized_weight()}
        if self.bias_shift is not None:
            found['bias'] = self.bias + self.bias_shift
        return found

    def quantized_weight(self) -> Tensor:
        """The weight as the quantized forward uses it."""
        if self.weight_source is not None:
            return self.weight_source()
        if self.rounded is not None:
            return self.rounded
        return self.weight_quantizer(self.weight)

    def _behind(self, attributes: dict[str, Any]) -> 'QuantLayer':
        """A copy for one call, with parameters or children hidden.

        ``nn.Module`` looks parameters up only where the instance has no
        attribute of that name. The layer itself may be running in another
        thread and is not touched.
        """
        if not attributes:
            return self
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        copy.__dict__.update(attributes)
        return copy

    def _input(self, port: str, level: int, x: Tensor) -> Tensor:
        if self._buffers.get('input_factors') is not None and port == 'input':
            x = self._scaled(x)
        if not self._listeners:
            return self._quantized(port, level, x)
        y = self._quantized(port, level, x)
        for listener, quantized in self._listeners:
            listener(port, level, y if quantized else x)
        return y

    def _scaled(self, x: Tensor) -> Tensor:
        """Channels at one scale; the weight makes up for it."""
        tail = [1] * (-1 - self.act_axis)
        y = x / self._buffers['input_factors'].view(-1, *tail)
        shift = self._buffers.get('input_shift')
        return y if shift is None else y - shift.view(-1, *tail)

    def _quantized(self, port: str, level: int, x: Tensor) -> Tensor:
        if not self.quantize_act:
            return x
        # a module's own way to its children is slow
        quantizer = self._modules['act_quantizers']._modules.get(port)
        if quantizer is None:
            return x
        quantized = quantizer(x, level)
        if self.drop_prob == 0:
            return quantized
        drawn = torch.rand(x.shape, generator=self.generator, device=x.device)
        return torch.where(drawn < 1 - self.drop_prob, quantized, x)


def quant_layers(model: nn.Module) -> dict[str, QuantLayer]:
    """Every twin in the model, by module name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, QuantLayer)
    }
