# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Channels of the float model scaled so that they quantize better."""

from .equalize_channels import EqualizeChannels

__all__ = ['EqualizeChannels']
