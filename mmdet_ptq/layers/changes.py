# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""How the state of a twin changes."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..errors import unknown
from ..quantizers import BaseQuantizer

Listener = Callable[[str, int, Tensor], None]
"""``listener(port, level, tensor)``"""


class Changes:
    """The methods of a :class:`QuantLayer` that change it."""

    def attach(
        self,
        weight: BaseQuantizer | None = None,
        acts: Mapping[str, BaseQuantizer] | None = None,
        levels: int = 1,
        by_head: bool = False,
        tied: bool = False,
    ) -> None:
        """Gives the layer its quantizers; those there already go.

        Args:
            weight (BaseQuantizer, optional): Of the weight.
            acts (Mapping[str, BaseQuantizer], optional): Of inputs, by
                port.
            levels (int): Calls in one forward of the detector, or of its
                head. Defaults to 1.
            by_head (bool): Whether levels are counted from the call of the
                part of the detector that holds the layer. Defaults to
                False: from that of the detector.
            tied (bool): Whether another module has its weight or bias too.
                Defaults to False.

        Raises:
            ValueError: If the layer has no such tensor.
        """
        self.act_quantizers.clear()
        self.set_quantizer('weight', weight)
        for port, quantizer in (acts or {}).items():
            self.set_quantizer(port, quantizer)
        self.levels = levels
        self.by_head = by_head
        self.tied = tied

    def set_quantizer(
        self, tensor: str, quantizer: BaseQuantizer | None
    ) -> None:
        """Replaces one quantizer.

        Args:
            tensor (str): ``'weight'``, which also loses what was learned or
                corrected for its former values, or a port.
            quantizer (BaseQuantizer, optional): None leaves it float.

        Raises:
            ValueError: If the layer has no such tensor.
        """
        if tensor == 'weight' and (
            self.weight_axis is not None or quantizer is None
        ):
            self.weight_quantizer = quantizer
            self.forget_rounding()
        elif tensor not in self.ports:
            own = () if self.weight_axis is None else ('weight',)
            raise ValueError(unknown('tensor', tensor, (*own, *self.ports)))
        elif quantizer is not None:
            self.act_quantizers[tensor] = quantizer
        elif tensor in self.act_quantizers:
            del self.act_quantizers[tensor]

    def switch(self, weight: bool, act: bool) -> None:
        """Says which operands are quantized, where there are quantizers.

        Args:
            weight (bool): Whether the weight is.
            act (bool): Whether the inputs are.
        """
        # these change in every step, and a module's own way is slow
        self.__dict__.update(quantize_weight=weight, quantize_act=act)

    @contextmanager
    def dropping(
        self, drop_prob: float, generator: torch.Generator | None
    ) -> Iterator[None]:
        """Leaves a share of the elements of the inputs float (QDrop).

        Args:
            drop_prob (float): The share, from 0 to 1.
            generator (torch.Generator, optional): Draws which, on the
                device of the inputs.
        """
        before = dict(drop_prob=self.drop_prob, generator=self.generator)
        self.__dict__.update(drop_prob=drop_prob, generator=generator)
        try:
            yield
        finally:
            self.__dict__.update(before)

    def learn_weight(self, source: Callable[[], Tensor]) -> None:
        """From now on asks ``source`` for the quantized weight."""
        self.weight_source = source

    def forget_rounding(self) -> None:
        """Drops what was learned or corrected for the grid of the weight."""
        self.fix_weight(None)
        self.shift_bias(None)

    def fix_weight(self, rounded: Tensor | None) -> None:
        """Ends the learning of the weight.

        Args:
            rounded (Tensor, optional): The quantized weight; None takes the
                nearest values.
        """
        self.weight_source = None
        self.rounded = rounded

    def shift_bias(self, shift: Tensor | None) -> None:
        """Says what the quantized weight asks of the bias.

        Args:
            shift (Tensor, optional): Added to it, shape (out_channels, );
                it may be learned. None leaves the bias as it is.
        """
        self.bias_shift = shift

    @contextmanager
    def listening(
        self, listener: Listener, quantized: bool = False
    ) -> Iterator[None]:
        """Tells a listener every input; there may be several at a time.

        Args:
            listener (Callable): Given port, pyramid level and tensor of
                each call, in the order in which listeners came. It must not
                change the tensor.
            quantized (bool): Whether it gets the tensor that the product is
                taken with rather than the float one. Defaults to False.
        """
        entry = [listener, quantized]  # told apart by identity
        self.__dict__['_listeners'] = (*self._listeners, entry)
        try:
            yield
        finally:
            self.__dict__['_listeners'] = tuple(
                e for e in self._listeners if e is not entry
            )

    def snapshot(self) -> Any:
        """What :meth:`restore` needs to undo the learning of the weight."""
        quantizer = self.weight_quantizer
        state = None if quantizer is None else quantizer.state_dict()
        return self.rounded, self.bias_shift, copy.deepcopy(state)

    def restore(self, snapshot: Any) -> None:
        """Puts weight quantizer, weight and bias shift back.

        Args:
            snapshot (Any): From :meth:`snapshot` of this layer.
        """
        rounded, shift, state = snapshot
        self.fix_weight(rounded)
        self.shift_bias(shift)
        if state is not None:
            self.weight_quantizer.load_state_dict(state)

    @torch.no_grad()
    def bake(self) -> None:
        """Replaces weight and bias by what the forward used, for good."""
        if self.weight_quantizer is not None and not self.baked:
            self.weight.copy_(self.quantized_weight())
            self.fix_weight(None)
            if self.bias_shift is not None:
                self.bias += self.bias_shift
                self.shift_bias(None)
        self.set_baked()

    def set_baked(self) -> None:
        """Says that the weight that the layer holds is the quantized one."""
        self.baked = True
