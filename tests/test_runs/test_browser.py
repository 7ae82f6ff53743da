# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""A report as a browser understands it."""

import shutil
import subprocess

import pytest
from report_kit import HOSTILE, data_of, harmless, result_of, work_dir

from mmdet_ptq.report import write_report

BROWSER = shutil.which('chromium') or shutil.which('google-chrome')


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason='no Chromium here')
def test_hostile_names_do_no_harm_in_a_browser(tmp_path):
    data = data_of((HOSTILE, HOSTILE + '</svg></style></title>'))
    result = result_of(config=HOSTILE, notes=[HOSTILE], command=HOSTILE)
    work_dir(tmp_path, result, data)
    path = tmp_path / 'report.html'
    assert write_report([tmp_path], path) == []
    done = subprocess.run(
        [
            BROWSER,
            *('--headless', '--no-sandbox', '--disable-gpu', '--dump-dom'),
            f'--user-data-dir={tmp_path / "profile"}',
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    # what the browser made of it, written out again
    seen = harmless(done.stdout)
    assert HOSTILE in seen.text['warnings']
    assert len([t for t, _ in seen.tags if t == 'section']) == 11
