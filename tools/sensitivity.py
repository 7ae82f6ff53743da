# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Says which layers and parts of a detector lose most by quantization."""

import sys

from mmdet_ptq.cli.sensitivity import main

if __name__ == '__main__':
    sys.exit(main())
