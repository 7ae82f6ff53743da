# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Images, what layers and units make of them, and the session of passes."""

from .appearance import notes_on
from .cache import ActivationCache
from .data import CalibrationImages, from_config, share_of_rank
from .feed import Batches, Feed
from .gradients import gradients
from .moments import ChannelMeans
from .observe import observing
from .replay import Replay
from .rows import sample_rows, steering_of, weight_matrix, weight_tensor
from .samples import (
    Images,
    Sample,
    collect,
    collect_float,
    own_quantizers,
    size_of,
)
from .second_moments import SecondMoments, moment_size, split_by_memory
from .session import Progress, Session, timed
from .statistics import Statistics
from .store import ResumeStore
from .units import Call, UnitView, frozen, mix

__all__ = [
    'ActivationCache',
    'Batches',
    'CalibrationImages',
    'Call',
    'ChannelMeans',
    'Feed',
    'Images',
    'Progress',
    'Replay',
    'ResumeStore',
    'Sample',
    'SecondMoments',
    'Session',
    'Statistics',
    'UnitView',
    'collect',
    'collect_float',
    'from_config',
    'frozen',
    'gradients',
    'mix',
    'moment_size',
    'notes_on',
    'observing',
    'own_quantizers',
    'sample_rows',
    'share_of_rank',
    'size_of',
    'split_by_memory',
    'steering_of',
    'timed',
    'weight_matrix',
    'weight_tensor',
]
