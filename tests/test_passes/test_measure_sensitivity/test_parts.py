# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Which layers are looked at together."""
