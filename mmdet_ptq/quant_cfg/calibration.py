# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Which images calibrate, and in how much memory."""

from dataclasses import dataclass

from ..checks import one_of, whole
from ..errors import QuantConfigError
from .bits import parse_bytes

CACHE_DTYPES = ('float32', 'float16')


@dataclass
class Calibration:
    """Which images calibrate.

    Attributes:
        num_samples (int): How many images, in ``quantize_detector`` how many
            batches of its dataloader. Defaults to 32.
        source (str): ``'train'``, ``'test'`` or a folder of images.
        seed (int): Seed of the choice of images, and of passes that draw.
            Defaults to 0.
        cache (str | int): How much memory of the CPU activations may take,
            e.g. ``'4GiB'``; the rest goes to the work dir. A model on a GPU
            keeps them there first, up to a third of its free memory.
            Defaults to 4 GiB.
        cache_dtype (str): ``'float32'`` or ``'float16'``, which halves it.
            Defaults to ``'float32'``.
    """

    num_samples: int = 32
    source: str = 'train'
    seed: int = 0
    cache: str | int = '4GiB'
    cache_dtype: str = 'float32'

    @property
    def cache_bytes(self) -> int:
        """``cache`` as a number."""
        return parse_bytes(self.cache, 'calibration.cache')

    def __post_init__(self) -> None:
        try:
            whole('num_samples', self.num_samples, 1)
            whole('seed', self.seed)
            one_of('cache_dtype', self.cache_dtype, CACHE_DTYPES)
        except ValueError as error:
            raise QuantConfigError(f'calibration: {error}') from None
        if not self.cache_bytes:
            raise QuantConfigError('calibration.cache: must be above 0')
        if not isinstance(self.source, str):
            raise QuantConfigError(
                f"calibration.source: {self.source!r} is not 'train', 'test' "
                'or a folder of images'
            )
