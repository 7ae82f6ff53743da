# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The page as a whole: whole, harmless, small."""

import json

import cv2
import numpy as np
import pytest
from report_kit import HOSTILE, data_of, harmless, layer, result_of, work_dir

from mmdet_ptq.errors import PTQError
from mmdet_ptq.report import page as module
from mmdet_ptq.report.files import Run
from mmdet_ptq.report.page import SECTIONS, page, write_report

IDS = [key for key, *_ in SECTIONS]


def test_every_section_has_content(tmp_path):
    path = tmp_path / 'a.png'
    cv2.imwrite(str(path), np.zeros((40, 50, 3), np.uint8))
    text, problems = page([Run('a', result_of(), data_of(path=str(path)))])
    assert problems == []
    seen = harmless(text)
    assert [a['id'] for t, a in seen.tags if t == 'section'] == IDS
    for key, title, _ in SECTIONS:
        words = seen.text[key].removeprefix(title).strip()
        assert len(words) > 30, key
        assert 'could not' not in words and 'Nothing was gathered' not in words
    charts = [a for t, a in seen.tags if t == 'svg']
    assert len(charts) > 15 and all(a['aria-label'] for a in charts)
    # each chart has a sentence under its title
    assert text.count('<figcaption>') == text.count('<figure>')
    assert 'few calibration images' in seen.text['warnings']
    assert '1 of them were put back' in seen.text['units']
    assert 'mmdet-ptq quantize a.py b.pth' in seen.text['settings']
    assert text.count('data:image/jpeg;base64,') == len(data_of()['examples'])


def spoiled(value):
    """Every text of a value in the place of which harm stands."""
    if isinstance(value, dict):
        return {k: spoiled(v) for k, v in value.items()}
    if isinstance(value, list):
        return [spoiled(v) for v in value]
    return HOSTILE + value if isinstance(value, str) else value


def test_texts_that_mean_harm():
    data = data_of((HOSTILE, HOSTILE + 'x'))
    for one in (result_of(), spoiled(result_of())):
        text, _ = page([Run(HOSTILE, one, data)])
        harmless(text)
    # keys too, and whatever was gathered
    result = spoiled(result_of(seconds={HOSTILE: 1.0}, float={HOSTILE: 0.5}))
    text, _ = page([Run(HOSTILE, result, spoiled(data))])
    harmless(text)


@pytest.mark.parametrize('value', [HOSTILE, 3, [HOSTILE], None])
def test_any_part_of_another_form(value):
    """The other sections are drawn, and what failed is named."""
    data = data_of()
    for key in result_of():
        if key == 'quantized':
            continue  # read_run refuses it
        text, problems = page([Run('a', result_of(**{key: value}), data)])
        assert len(problems) <= 3
        assert harmless(text).text['lost']
    for key in ('accuracy', 'changes', 'examples', 'layers', 'why'):
        text, problems = page([Run('a', result_of(), {**data, key: value})])
        seen = harmless(text)
        for problem in problems:
            assert problem.startswith("section '")
            assert problem in ' '.join(seen.text.values())


def test_of_an_older_version(tmp_path):
    """A result without what later versions write: the rest is shown."""
    old = result_of()
    for key in ('started', 'command', 'machine', 'scaling', 'rounding'):
        del old[key]
    work_dir(tmp_path, old)
    assert write_report([tmp_path], tmp_path / 'report.html') == []
    seen = harmless((tmp_path / 'report.html').read_text())
    assert '0.450' in seen.text['accuracy']
    assert 'made by an older version' in seen.text['lost']
    assert 'not recorded' in seen.text['settings']


def test_several_runs_side_by_side(tmp_path):
    for i, recipe in enumerate(('uniform', 'gptq', 'gptq')):
        work_dir(tmp_path / str(i), result_of(recipe=recipe), data_of())
    folders = [tmp_path / str(i) for i in range(3)]
    assert write_report(folders, tmp_path / 'all.html') == []
    seen = harmless((tmp_path / 'all.html').read_text())
    for name in ('uniform w4a8', 'gptq w4a8 (1)', 'gptq w4a8 (2)'):
        for key in ('accuracy', 'lost', 'bits', 'layers', 'cost', 'time'):
            assert name in seen.text[key], key


def test_problems_of_files_come_back_and_stand_first(tmp_path):
    work_dir(tmp_path, data=data_of(version=9))
    (problem,) = write_report([tmp_path], tmp_path / 'report.html')
    seen = harmless((tmp_path / 'report.html').read_text())
    assert 'version 9' in problem and 'version 9' in seen.text['warnings']


def test_a_large_network_stays_under_the_limit(tmp_path):
    layers = [layer(f'backbone.{"x" * 60}.{i}') for i in range(5500)]
    data = data_of(layers=dict(images=4, aligned=True, layers=layers))
    work_dir(tmp_path, data=data)
    path = tmp_path / 'report.html'
    (problem,) = write_report([tmp_path], path)
    assert 'left out to stay under 3 MB' in problem
    assert path.stat().st_size < module.LIMIT
    assert 'too large' in harmless(path.read_text()).text['layers']


def test_what_cannot_fit_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(module, 'LIMIT', 1000)
    work_dir(tmp_path)
    path = tmp_path / 'report.html'
    says = r'its numbers are in ptq_result\.json and ptq_report\.json$'
    with pytest.raises(PTQError, match=says):
        write_report([tmp_path], path)
    with pytest.raises(PTQError, match=r'give fewer work dirs$'):
        write_report([tmp_path] * 2, path)
    assert json.loads((tmp_path / 'ptq_result.json').read_text())
