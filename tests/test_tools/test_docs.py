# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Generated pages are what their commands make now."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_quant_cfg_page_is_up_to_date():
    out = subprocess.run(
        [sys.executable, 'tools/make_quant_cfg_doc.py', '--check'],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert out.returncode == 0, out.stdout + out.stderr


def test_links_between_pages_exist():
    for page in [ROOT / 'README.md', *(ROOT / 'docs').glob('*.md')]:
        for link in re.findall(r'\]\(([^)#]+)\)', page.read_text()):
            if '://' not in link:
                assert (page.parent / link).exists(), f'{page.name}: {link}'
