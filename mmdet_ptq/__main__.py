# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""``python -m mmdet_ptq`` is ``mmdet-ptq``."""

import sys

from .cli import main

if __name__ == '__main__':
    sys.exit(main())
