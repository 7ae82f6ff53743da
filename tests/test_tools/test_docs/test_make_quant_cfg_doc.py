# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The page of quant_cfg is what its command makes now."""

import subprocess
import sys
from pathlib import Path


def test_page_is_up_to_date(environment):
    out = subprocess.run(
        [sys.executable, '-m', 'tools.docs.make_quant_cfg_doc', '--check'],
        cwd=Path(__file__).parents[3],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert out.returncode == 0, out.stdout + out.stderr
