# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The package as a command."""

import subprocess
import sys


def test_it_is_the_command(environment):
    done = subprocess.run(
        [sys.executable, '-m', 'mmdet_ptq', 'report', 'none'],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and 'none is no folder' in done.stderr
