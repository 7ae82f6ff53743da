# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Counts what a quantized detector costs; needs no checkpoint."""

import sys

from mmdet_ptq.cli.cost import main

if __name__ == '__main__':
    sys.exit(main())
