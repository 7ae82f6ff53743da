# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Images, what layers and units make of them, and the session of passes."""

from .cache import ActivationCache
from .data import CalibrationImages, from_config, share_of_rank
from .gradients import gradients
from .moments import ChannelMeans
from .observe import observing
from .replay import Replay
from .samples import (
    Images,
    Sample,
    collect,
    collect_float,
    own_quantizers,
    set_quantized,
    size_of,
)
from .second_moments import SecondMoments, moment_size, split_by_memory
from .session import Session
from .store import ResumeStore
from .units import Call, UnitView, frozen, mix

__all__ = [
    'ActivationCache',
    'CalibrationImages',
    'Call',
    'ChannelMeans',
    'Images',
    'Replay',
    'ResumeStore',
    'Sample',
    'SecondMoments',
    'Session',
    'UnitView',
    'collect',
    'collect_float',
    'from_config',
    'frozen',
    'gradients',
    'mix',
    'moment_size',
    'observing',
    'own_quantizers',
    'set_quantized',
    'share_of_rank',
    'size_of',
    'split_by_memory',
]
