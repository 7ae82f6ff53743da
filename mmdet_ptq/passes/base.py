# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What every pass promises to the engine."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from torch import nn

from ..calibration import Session
from ..errors import QuantConfigError
from ..quant_cfg.defaults import with_defaults
from ..quant_cfg.plain import plain
from ..quant_cfg.recipes import SWITCHES
from ..registry import arguments_of
from ..surgery import Edit

#: What passes give to later ones, and the pass that gives it: statistics of
#: activations (``'observers'``), the mean of each input channel
#: (``'means'``), ranges of all quantizers (``'ranges'``), ranges chosen by
#: outputs, which others would undo (``'chosen'``), corrected biases
#: (``'corrected'``), weights that are not rounded to the nearest value
#: (``'learned'``), batch norms in the layers before them (``'folded'``),
#: channels that were scaled (``'equalized'``), layers that scale or shift
#: their inputs (``'scaled'``), what GELUs give shifted (``'shifted'``), inputs
#: with noise (``'noisy'``), softmaxes whose numerator is quantized
#: (``'numerators'``), softmaxes of whole logits (``'whole'``), positional
#: encodings that are projected apart (``'positions'``), heads whose channels
#: are mixed (``'mixed'``) and bits that were chosen for each tensor
#: (``'allocated'``).
GIVERS = dict(
    folded='FoldBatchNorm',
    equalized='EqualizeChannels',
    mixed='MixHeads',
    scaled='ScaleInputs',
    shifted='ShiftGelu',
    observers='Observe',
    means='Observe',
    ranges='SetRanges',
    chosen='LAPQ',
    corrected='CorrectBias',
    learned='Reconstruct',
    numerators='QuantizeNumerator',
    whole='IntegerSoftmax',
    positions='SplitPositions',
    noisy='AddNoise',
    allocated='AllocateBits',
)


class BasePass(ABC):
    """One step of a quantization.

    A pass reads and writes the session and nothing else; it does not ask
    which detector it has. Whatever it changes in the float model it changes
    by :meth:`Session.edit`, so that the artefact can be rebuilt.

    Attributes:
        needs (frozenset[str]): What earlier passes have to have given, in
            the words of :data:`GIVERS`.
        gives (frozenset[str]): What is there after it.
        refuses (frozenset[str]): What may not be there yet.
        for_attention (bool): Whether a recipe that has it is meant for
            detectors with an attention alone.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    gives: ClassVar[frozenset[str]] = frozenset()
    refuses: ClassVar[frozenset[str]] = frozenset()
    for_attention: ClassVar[bool] = False

    def refuse_idle(
        self, acts: Mapping[str, tuple[str, Sequence[str]]]
    ) -> None:
        """Refuses arguments that would not act beside the others.

        Args:
            acts (Mapping): For an argument that does not always act, another
                one, and with which values of that it does. Attributes of the
                pass have the names of its arguments.

        Raises:
            ValueError: If such an argument is not at its default.
        """
        for name, (other, values) in acts.items():
            given = getattr(self, name)
            default = arguments_of(type(self))[name].default
            # a config that is spelled out has defaults inside them too
            same = with_defaults(plain(given)) == with_defaults(plain(default))
            if getattr(self, other) not in values and not same:
                choices = ' or '.join(f'{other}={v!r}' for v in values)
                raise ValueError(
                    f'{name}={given!r} acts with {choices} alone, and {other} '
                    f'is {getattr(self, other)!r}; remove it'
                )

    def check(self, earlier: Sequence['BasePass']) -> None:
        """Finds what is wrong with its place, before the first forward.

        Args:
            earlier (Sequence[BasePass]): The passes before it.

        Raises:
            QuantConfigError: Says which pass has to be moved or added.
        """
        name = type(self).__name__
        given = frozenset().union(*(one.gives for one in earlier))
        for word in sorted(self.needs - given):
            raise QuantConfigError(
                f'passes: {name} needs what {GIVERS.get(word, word)} gives '
                f"({word}); put dict(type='{GIVERS.get(word, word)}') before "
                'it'
            )
        for one in earlier:
            if one.gives & self.refuses and type(one) is type(self):
                raise QuantConfigError(
                    f'passes: {name} is there twice; leave one out'
                )
            if one.gives & self.refuses and one.refuses & self.gives:
                raise QuantConfigError(
                    f'passes: {name} and {type(one).__name__} cannot go '
                    f'together; leave one of them out{_switched(self, one)}'
                )
            if one.gives & self.refuses:
                raise QuantConfigError(
                    f'passes: {name} comes after {type(one).__name__} and '
                    'would undo its work; put it before'
                )

    def restructure(
        self, model: nn.Module, forward: Callable[[], Any]
    ) -> list[Edit]:
        """Finds what of the float model has to be built in another way.

        Args:
            model (nn.Module): Before it is surveyed; its products of
                activations are layers already. Not to be changed here.
            forward (Callable): Runs it on one batch of images.

        Returns:
            list[Edit]: Changes that leave its outputs as they are; none by
            default. They are made before the survey.
        """
        return []

    def prepare(self, session: Session) -> None:  # noqa: B027
        """Finds what does not fit this model, before any pass has run.

        Args:
            session (Session): Quantizers are attached, nothing is observed.

        Raises:
            QuantConfigError: Names the layer, and what to do.
        """

    @abstractmethod
    def run(self, session: Session) -> None:
        """Does its work, without gradients unless it asks for them.

        Args:
            session (Session): The running quantization.
        """


def _switched(*passes: BasePass) -> str:
    """How a key of ``quant_cfg`` takes one of the passes out, if it can."""
    names = [type(one).__name__ for one in passes]
    keys = [f'{k}=False' for k, name in SWITCHES.items() if name in names]
    return f' ({", ".join(keys)})' if keys else ''


def checked(passes: Sequence[object]) -> list[BasePass]:
    """Passes in an order that works.

    Args:
        passes (Sequence[object]): As built from a config.

    Returns:
        list[BasePass]: The same.

    Raises:
        QuantConfigError: If one is no pass, or is out of place.
    """
    found: list[BasePass] = []
    for one in passes:
        if not isinstance(one, BasePass):
            raise QuantConfigError(
                f'passes: {type(one).__name__} is registered as a pass but '
                'does not inherit from mmdet_ptq.passes.BasePass'
            )
        one.check(found)
        found.append(one)
    if not any('ranges' in one.gives for one in found):
        raise QuantConfigError(
            'passes: none of them sets the ranges of the quantizers; add '
            "dict(type='Observe'), dict(type='SetRanges')"
        )
    return found
