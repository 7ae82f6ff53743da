# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
from .cache import ActivationCache
from .data import CalibrationImages, from_config, share_of_rank
from .session import Session
from .store import ResumeStore

__all__ = [
    'ActivationCache',
    'CalibrationImages',
    'ResumeStore',
    'Session',
    'from_config',
    'share_of_rank',
]
