# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The sections of a report: runs in, markup out."""
