# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Quantizes a trained MMDetection detector and tests it before and after."""

import sys

from mmdet_ptq.cli.quantize import main

if __name__ == '__main__':
    sys.exit(main())
