# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""A short run of the toy study."""

import json

import numpy as np
import pytest
from PIL import Image

pytest.importorskip('sklearn')
pytest.importorskip('matplotlib')

from tools.analysis_tools.toy import networks, regression

SHORT = ['--steps', '60', '--replicas', '2', '--draws', '4']
SHORT += ['--candidates', '9']


def run(out, *arguments):
    assert regression.main(['--out', str(out), *SHORT, *arguments]) == 0
    return (out / 'toy_regression.json').read_bytes()


@pytest.fixture(scope='module')
def short(tmp_path_factory):
    out = tmp_path_factory.mktemp('toy')
    page = out / 'page.md'
    page.write_text('before\n<!-- toy -->\nold\n<!-- /toy -->\nafter\n')
    run(out, '--doc', str(page))
    return out


def test_json(short):
    found = json.loads((short / 'toy_regression.json').read_text())
    s = found['settings']
    for name in ('regression', 'classification'):
        part = found[name]
        assert set(part['noise']) == {
            'gaussian',
            'uniform',
            'relative_gaussian',
            'relative_uniform',
        }
        for rows in part['noise'].values():
            assert np.shape(rows['skill']) == (len(s['sigmas']), 2)
        for curve in part['scales'].values():
            assert np.shape(curve) == (2, len(s['layers']), 9)
        assert sum(part['weights']['counts']) == 2 * 2 * 24 * 24
        assert {'uniform_2', 'llaq_4', 'distance'} <= set(part['llaq'])
    counts = [found[t]['parameters'] for t in ('regression', 'classification')]
    assert max(counts) < 1.1 * min(counts)
    assert len(found['findings']) == 10
    for row in found['findings'].values():
        assert set(row) == {'claim', 'rule', 'holds', 'numbers', 'text'}
        assert isinstance(row['holds'], bool) and 'nan' not in row['text']


def test_pictures(short):
    names = sorted(p.stem for p in short.glob('*.png'))
    assert names == [
        'error_against_scale',
        'fisher_against_hessian',
        'llaq_levels',
        'noise_sensitivity',
        'weight_histograms',
    ]
    for name in names:
        with Image.open(short / f'{name}.png') as image:
            image.load()
            assert image.width >= 900 and image.height >= 400
            assert np.asarray(image.convert('L')).std() > 10


def test_page(short):
    text = (short / 'page.md').read_text()
    assert text.startswith('before\n<!-- toy -->\nCommand: `python -m tools.')
    assert text.endswith('|\n<!-- /toy -->\nafter\n') and '\nold\n' not in text
    assert '--steps 60 --replicas 2 --draws 4 --candidates 9 --doc' in text
    found = json.loads((short / 'toy_regression.json').read_text())
    for row in found['findings'].values():
        verdict = 'holds' if row['holds'] else '**does not hold**'
        assert f'| {row["claim"]} | {verdict} | {row["text"]} |' in text


def test_same_seed_same_bytes(short, tmp_path):
    study = regression.study
    again = study(60, 2, 4, 9, 0)
    text = json.dumps(regression.rounded(again)) + '\n'
    assert text == (short / 'toy_regression.json').read_text()
    make = networks.make_tasks
    for a, b in zip(make(0, 1), make(1, 1), strict=True):
        assert (a.x != b.x).any()
