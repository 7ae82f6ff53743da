# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What each layer and each part of a detector loses by quantization."""

from .entries import ALL, Entry, entries_of
from .layers import layer_errors
from .measure import Measure
from .parts import Part, find_parts
from .ranking import Rank, ranked, spearman, spread_over
from .scores import SCORES, Score, image_score
from .suggest import Suggestion, suggestion, with_rules

__all__ = [
    'ALL',
    'SCORES',
    'Entry',
    'Measure',
    'Part',
    'Rank',
    'Score',
    'Suggestion',
    'entries_of',
    'find_parts',
    'image_score',
    'layer_errors',
    'ranked',
    'spearman',
    'spread_over',
    'suggestion',
    'with_rules',
]
