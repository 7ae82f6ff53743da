# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Images, what layers and units make of them, and the session of passes."""

from .appearance import notes_on
from .cache import ActivationCache
from .data import CalibrationImages, share_of_rank
from .feed import Batches, Feed, ImageFeed
from .gradients import gradients
from .moments import ChannelMeans
from .observe import observing
from .prefix import Prefix, room_for_outputs
from .replay import Replay
from .rows import (
    sample_outputs,
    sample_rows,
    steering,
    weight_matrix,
    weight_tensor,
)
from .samples import (
    Images,
    Sample,
    collect,
    collect_float,
    of_all_images,
    own_quantizers,
    size_of,
)
from .session import Progress, Session, timed
from .sources import from_config
from .statistics import Statistics
from .store import ResumeStore
from .sweep import Sweep
from .units import Call, UnitView, frozen, mix

__all__ = [
    'ActivationCache',
    'Batches',
    'CalibrationImages',
    'Call',
    'ChannelMeans',
    'Feed',
    'ImageFeed',
    'Images',
    'Prefix',
    'Progress',
    'Replay',
    'ResumeStore',
    'Sample',
    'Session',
    'Statistics',
    'Sweep',
    'UnitView',
    'collect',
    'collect_float',
    'from_config',
    'frozen',
    'gradients',
    'mix',
    'notes_on',
    'observing',
    'of_all_images',
    'own_quantizers',
    'room_for_outputs',
    'sample_outputs',
    'sample_rows',
    'share_of_rank',
    'size_of',
    'steering',
    'timed',
    'weight_matrix',
    'weight_tensor',
]
