# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Makes the report of one run again, or of several side by side."""

import sys

from mmdet_ptq.cli.report import main

if __name__ == '__main__':
    sys.exit(main())
