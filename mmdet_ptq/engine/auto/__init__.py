# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Finds recipe and widths for a goal, on training images held out."""

from .goal import Goal, Trial, goal_of
from .run import AutoOptions, AutoRun

__all__ = ['AutoOptions', 'AutoRun', 'Goal', 'Trial', 'goal_of']
