# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Generated pages are what their commands make now."""

import re
import runpy
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


def test_measured_page_is_up_to_date(monkeypatch):
    monkeypatch.chdir(ROOT)
    found = runpy.run_path('tools/make_measured_doc.py')['document']()
    assert found == Path('docs/measured.md').read_text()


def test_whole_run_on_the_measured_page():
    section = runpy.run_path(str(ROOT / 'tools' / 'make_measured_doc.py'))
    lines = section['reconstruct_section'](
        dict(
            full=dict(
                command='c',
                machine='a GPU',
                size=[800, 1333],
                images=64,
                iters=2000,
                found=dict(minutes=31.4, units=33, peak_gib=7.25),
            )
        )
    )
    assert '2000 steps for each of 33 units on a GPU: 31 min' in lines[-2]


def test_links_between_pages_exist():
    for page in [ROOT / 'README.md', *(ROOT / 'docs').glob('*.md')]:
        for link in re.findall(r'\]\(([^)#]+)\)', page.read_text()):
            if '://' not in link:
                assert (page.parent / link).exists(), f'{page.name}: {link}'
