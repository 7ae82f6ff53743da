# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
from .data import CalibrationImages, from_config, share_of_rank
from .session import Session
from .store import ResumeStore

__all__ = [
    'CalibrationImages',
    'ResumeStore',
    'Session',
    'from_config',
    'share_of_rank',
]
