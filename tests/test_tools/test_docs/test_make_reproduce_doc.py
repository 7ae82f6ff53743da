# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The page of Reg-PTQ's tables is complete, and so are its commands."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from tools.docs.make_reproduce_doc import Found, document

ROOT = Path(__file__).parents[3]
PAGE = ROOT / 'docs' / 'reproduce.md'
TABLES = json.loads(
    (ROOT / 'docs/results/published_reg_ptq.json').read_text()
)['tables']

SWIN = 'mask-rcnn_swin-t-p4-w7_fpn_3x_coco'


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Writes result files and makes the page with them."""
    monkeypatch.chdir(ROOT)

    def page(**files):
        for name, content in files.items():
            (tmp_path / f'{name}.json').write_text(json.dumps(content))
        return document(PAGE.read_text(), Found(tmp_path))

    return page


def result(recipe='reg_ptq', bits='w4a4', ap=0.3456, **more):
    return dict(
        dict(
            recipe=recipe,
            bits=bits,
            float={},
            quantized={'coco/bbox_mAP': ap},
            storage_mb=dict(float=151.88, quantized=25.2),
            cost=dict(macs=2.5e11, reg_ptq_flops=6.64e10),
        ),
        **more,
    )


def test_page_is_up_to_date(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert document(PAGE.read_text()) == PAGE.read_text()


def test_results_fill_their_cells(results):
    page = results(
        retinanet_r50_fpn_2x_coco_w4a4_reg_ptq=result(
            float={'coco/bbox_mAP': 0.3741}
        ),
        retinanet_r50_fpn_2x_coco_w4a8_qdrop=result('qdrop', 'w4a8', 0.369),
        retinanet_r50_fpn_2x_coco_w2a4_fp_head=result(bits='w2a4', ap=0.27),
        retinanet_r50_fpn_1x_voc0712_w4a4_reg_ptq=result(
            quantized={'pascal_voc/mAP': 0.7561, 'pascal_voc/AP50': 0.756}
        ),
        **{
            'detr_r50_8xb2-150e_coco_w6a6_igq_vit': result(
                'igq_vit', 'w6a6', 0.388
            ),
            f'{SWIN}_w4a4_repq_vit': result(
                'repq_vit',
                quantized={'coco/bbox_mAP': 0.352, 'coco/segm_mAP': 0.349},
            ),
            'retinanet_r50_fpn_2x_coco_w2a4_thresholds_c5e-5_i0.5': result(
                bits='w2a4', ap=0.238
            ),
        },
    )
    rows = page.splitlines()
    assert any(
        r.startswith(
            '| RepQ-ViT | w4a4 | 36.1 36.0 / 35.2 34.9 | 44.2 40.2 / |'
        )
        for r in rows
    )
    assert '| IGQ-ViT | w6a6 | 41.1 / 38.8 |' in rows
    in_row = [r for r in rows if r.startswith('| Reg-PTQ | w4a4 | 36.7 / 34')]
    assert len(in_row) == 2  # Tables 1 and S1
    assert sum('| float |  | 37.4 / 37.4 | 38.9 / |' in r for r in rows) == 3
    assert any(r.startswith('| QDrop | w4a8 | 37.0 / 36.9 |') for r in rows)
    assert any(r.startswith('| FP head | w2a4 | 27.0 / 27.0') for r in rows)
    assert '| Reg-PTQ | w4a4 | 78.3 / | 76.0 / 75.6 |' in rows
    assert '| 0.5 | 23.8 / | 23.8 / 23.8 | 23.8 / | 23.8 / | 23.2 / |' in rows
    assert (
        '| RetinaNet R50 | w4a4 | all | 14.46 / 66.40 | 18.42 / 6.30 |' in rows
    )
    assert '| INT4 | 84.5 | 22.8 / 24.0 |' in rows


def test_a_run_without_metrics_fills_nothing(results):
    name = 'retinanet_r50_fpn_2x_coco_w4a4_reg_ptq'
    unfinished = dict(recipe='reg_ptq', bits='w4a4', float={}, quantized={})
    assert results(**{name: unfinished}) == results()


@pytest.mark.parametrize(
    ('name', 'content', 'says'),
    [
        ('retinanet_r50_fpn_2x_coco_w4a4', result(), 'no table has a cell'),
        (
            'retinanet_r50_fpn_2x_coco_w4a4_qdrop',
            result('reg_ptq'),
            'of reg_ptq w4a4',
        ),
        (
            'retinanet_r50_fpn_2x_coco_w2a4_fp_head',
            result(bits='w4a4'),
            'of reg_ptq w4a4',
        ),
    ],
)
def test_a_wrong_file_is_refused(results, name, content, says):
    with pytest.raises(ValueError, match=says):
        results(**{name: content})


def test_commands_of_the_page_make_every_cell(monkeypatch):
    """They are run by bash, with `run` saying what it was given."""
    monkeypatch.chdir(ROOT)
    blocks = re.findall(r'```bash\n(.*?)```', PAGE.read_text(), re.DOTALL)
    wanted = [b for b in blocks if re.search(r'^COCO=|\brun [a-z$]', b, re.M)]
    script = 'run() { echo "$@"; }\n' + '\n'.join(wanted)
    said = subprocess.run(
        ['bash', '-euc', script], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    runs = {line.split()[2] for line in said}
    found = Found(Path('nowhere'))
    document(PAGE.read_text(), found)
    assert runs == found.asked
    for line in said:
        config, detector, name, *options = line.split()
        path = ROOT / 'configs' / 'ptq' / f'{config}.py'
        assert path.is_file(), config
        assert name.startswith(f'{path.stem.split("_w")[0]}_')
        assert path.stem.startswith(detector)
        bits = re.search(r'_(w\da\d)_', name)[1]
        said_bits = (
            [options[options.index('--bits') + 1]]
            if '--bits' in options
            else re.findall(r'_(w\da\d)$', config)
        )
        # the config of Table 2 has its bits inside
        assert said_bits == [bits] or config.startswith('thresholds/')


def test_rows_printed_twice_agree():
    once = {}
    for table in ('1', 'S1', 'S4'):
        for method, bits, values in TABLES[table]['rows']:
            for d, v in zip(TABLES[table]['columns'], values, strict=True):
                assert once.setdefault((method, bits, d), v) == v


def test_claims_of_the_page_hold():
    """What it says under "What does not fit together"."""

    def ap(table, method, bits, start):
        columns = TABLES[table]['columns']
        at = [d.startswith(start) for d in columns].index(True)
        rows = {(m, b): v for m, b, v in TABLES[table]['rows']}
        return rows[method, bits][at]

    f50, r50 = 'faster-rcnn_r50', 'retinanet_r50'
    heads = {(d, k): v for d, k, v in TABLES['3']['rows']}
    alone = heads[f'{f50}_fpn_2x_coco', 'LLAQ']
    assert alone[0] - ap('1', 'Reg-PTQ', 'w2a4', f50) > 4
    assert alone[1] > ap('1', 'Reg-PTQ', 'w3a3', f50)
    best = max(max(row) for row in TABLES['2']['values'])
    assert best == ap('1', 'Reg-PTQ', 'w2a4', r50)
    uniform = heads[f'{r50}_fpn_2x_coco', 'Uniform']
    llaq = heads[f'{r50}_fpn_2x_coco', 'LLAQ']
    assert 0 < llaq[0] - uniform[0] < 1.6 / 2
    assert uniform[0] == TABLES['2']['baseline']
    assert ap('S1', 'FP head', 'w4a4', r50) == uniform[2]
    assert ap('S1', 'Reg-PTQ', 'w4a4', r50) > uniform[2]
    losses = [
        ap('S1', 'FP head', 'w2a4', d) - ap('S1', 'Reg-PTQ', 'w2a4', d)
        for d in TABLES['S1']['columns']
    ]
    assert max(losses) == pytest.approx(9)
    for table, method, more, fewer in (
        ('1', 'AdaRound', 'w4a4', 'w3a3'),
        ('1', 'BRECQ', 'w4a8', 'w4a4'),
        ('S2', 'BRECQ', 'w4a8', 'w4a4'),
    ):
        assert ap(table, method, more, f50) < ap(table, method, fewer, f50)
    for kind in ('retinanet', 'faster-rcnn'):
        small, large = (
            ap('1', 'Reg-PTQ', 'w4a4', f'{kind}_{r}') for r in ('r50', 'r101')
        )
        assert small > large
