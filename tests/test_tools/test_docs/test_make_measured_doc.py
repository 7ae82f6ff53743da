# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The page of measurements."""

import json
from pathlib import Path

from tools.docs.make_measured_doc import (
    document,
    gpu_section,
    recipes_section,
    reconstruct_section,
    sides,
)

ROOT = Path(__file__).parents[3]


def test_page_is_up_to_date(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert document() == Path('docs/measured.md').read_text()


def test_whole_run():
    lines = reconstruct_section(
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


def cuda(**more):
    crossed = dict(copies=26, waits=25, item=2, kernels=781)
    return dict(
        command='python -m tools.speed.benchmark',
        settings=dict(
            size=[800, 1216],
            device='cuda',
            images=8,
            repeats=12,
            recipe='uniform',
            bits='w8a8',
        ),
        machine='8 cores, Card 1, torch 9',
        date='2026-01-02',
        detectors={
            'RetinaNet R50': dict(
                calibrate=16.379,
                forward=1.401,
                float_forward_s=0.0149,
                stages={
                    'weight ranges': 3.1,
                    'calibration': 9.02,
                    'activation ranges': 4.3,
                },
                peak_gpu_mb=867,
                crossings_float=crossed,
                crossings_quantized=dict(crossed, kernels=882),
            )
        },
        **more,
    )


def test_a_gpu_has_tables_of_its_own():
    lines = gpu_section(cuda())
    assert lines[0] == '## Time on a GPU'
    assert '8 cores, Card 1, torch 9, 2026-01-02' in lines[2]
    assert lines[2].endswith(
        '`python -m tools.speed.benchmark --device cuda --size 800 1216 '
        '--images 8 --repeats 12`'
    )
    assert (
        '| RetinaNet R50 | 14.9 | 16.38 | 3.10 | 9.02 | 4.30 | 1.40 | 867 |'
        in lines
    )
    assert '| RetinaNet R50 | 26, 26 | 25, 25 | 2, 2 | 781, 882 |' in lines
    assert not any('qdrop' in line for line in lines)
    step = dict(
        step_ms=10.04,
        float_unit_ms=3.01,
        float_detector_ms=40.0,
        over_float=3.335,
        hours=0.183,
        peak_gpu_mb=2099,
    )
    row = '| 2 | 10.0 | 3.0 | 40.0 | 3.33 | 0.18 | 2099 |'
    assert row in gpu_section(cuda(steps={'2': step}))


def test_a_gpu_is_not_spoken_of_without_its_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = tmp_path / 'docs/results'
    results.mkdir(parents=True)
    assert 'GPU' not in document()
    (results / 'benchmark_cuda.json').write_text(json.dumps(cuda()))
    assert '## Time on a GPU' in document()


def test_sides():
    assert sides(512) == sides([512]) == '512 x 512'
    assert sides([800, 1216]) == '800 x 1216'


def test_recipes():
    settings = dict(recipe='x', bits='w4a4', size=[800, 1216], images=4)
    detector = dict(
        calibrate=2.5,
        float_forward_s=3.25,
        forward=1.125,
        float_peak_rss_mb=900,
        peak_rss_mb=1000,
    )
    found = dict(settings=settings, detectors=dict(A=detector))
    lines = recipes_section([found, found])
    row = (
        '| A | `x` | w4a4 | 800 x 1216 | 4 | 2.50 | 3.2 | 1.12 | 900 | 1000 |'
    )
    assert lines.count(row) == 2
    # the second began with the memory that the first had taken
    after = dict(detector, float_peak_rss_mb=1000, peak_rss_mb=1200)
    shared = dict(found, detectors=dict(A=detector, B=after))
    lines = recipes_section([shared])
    assert row in lines
    assert '| B | `x` | w4a4 | 800 x 1216 | 4 | 2.50 | 3.2 | 1.12 |  |  |' in (
        lines
    )
