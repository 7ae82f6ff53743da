# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Images, predictions and files of runs, made by hand."""

import json
from html.parser import HTMLParser

import numpy as np

from mmdet_ptq.report.files import DATA, RESULT, VERSION
from mmdet_ptq.report.gather import gathered
from mmdet_ptq.report.predictions import Boxes, ImageRow

#: what a file or a class could be called by somebody who means harm
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>\'&'


def boxes(*rows, crowd=()):
    """Boxes from ``(x1, y1, x2, y2, label, score)``."""
    table = np.array(rows, float).reshape(-1, 6)
    found = np.zeros(len(table), bool)
    found[list(crowd)] = True
    return Boxes(
        table[:, :4].astype(np.float32),
        table[:, 4].astype(np.int64),
        table[:, 5].astype(np.float32),
        found,
    )


def row(key, found, truth=None, path='', size=(100, 120)):
    """An image with predictions."""
    return ImageRow(str(key), path, size, found, truth)


def scene(shift=0.0, count=6, path=''):
    """Images with two objects each; the second is found less well."""
    rows = []
    for i in range(count):
        truth = boxes((10, 10, 40, 40, 0, 1), (50, 20, 110, 90, 1, 1))
        found = boxes(
            (10, 10, 40, 40, 0, 0.9),
            (50 + shift * i, 20, 110 + shift * i, 90, 1, 0.8),
            (0, 60, 20, 99, 1, 0.2),
        )
        rows.append(row(i, found, truth, path))
    return rows


def histogram(rows=8, ends=None):
    """What :class:`GridHistogram` gives."""
    return dict(
        counts=[*range(30), *range(30, 0, -1)],
        clipped=0.01,
        codes=4,
        rows=rows,
        grid=[-1.0, -0.33, 0.33, 1.0],
        ends=ends,
    )


def layer(name, **given):
    """A layer of the report."""
    return {
        **dict(
            name=name,
            part='backbone',
            bits=[4, 8],
            weight='UniformQuantizer',
            inputs=['UniformQuantizer'],
            sqnr=12.5,
            cosine=0.98,
            weight_sqnr=20.1,
            weights=histogram(),
            acts=histogram(1, [0.0, 3.5]),
        ),
        **given,
    }


def result_of(**given):
    """A result file, small and whole."""
    unit = dict(
        unit='neck',
        before=1.0,
        after=1.5,
        kept=False,
        why='its loss rose',
        curve=[1.0],
        learned=['AdaRound'],
        seconds=2.0,
        correction=None,
    )
    found = dict(
        started='2026-01-02T03:04:05Z',
        command='mmdet-ptq quantize a.py b.pth',
        config='configs/a.py',
        checkpoint=dict(path='b.pth', sha256='0' * 64),
        recipe='uniform',
        bits='w4a8',
        quant_cfg=dict(bits='w4a8', rules=[], passes=[]),
        fingerprint='f',
        machine=dict(cpu='a processor', cores=2),
        layers=dict(
            quantized=2, float=[dict(name='head.last', why='rule: skip')]
        ),
        storage_mb=dict(float=8.0, quantized=1.0),
        cost=dict(
            input=[1, 3, 64, 64],
            macs=2e9,
            parts=dict(backbone=1.5e9, head=0.5e9),
            bops=dict(float=2e12, quantized=1e11),
            layers={'conv': dict(macs=1, calls=1, bits=[4, 8])},
        ),
        notes=['few calibration images'],
        reconstruction=[dict(unit, unit='stem', after=0.5, kept=True), unit],
        ranges=[],
        rounding=[],
        equalization=[],
        scaling=[],
        float={'coco/bbox_mAP': 0.5, 'coco/bbox_mAP_l': -1},
        quantized={'coco/bbox_mAP': 0.45, 'coco/bbox_mAP_l': -1},
        seconds=dict(calibration=3.5, freeze=0.1),
        peak_rss_mb=512.0,
        versions=dict(mmdet_ptq='0.1.0'),
    )
    return {**found, **given}


def data_of(classes=('cat', 'dog'), path='', **given):
    """What is gathered for a report of :func:`result_of`."""
    layers = dict(
        images=2, aligned=True, layers=[layer('stem'), layer('conv')]
    )
    found, problems = gathered(
        scene(path=path), scene(3.0, path=path), classes, layers, {}
    )
    assert problems == []
    started = result_of()['started']
    return {**dict(version=VERSION, started=started, **found), **given}


def work_dir(folder, result=None, data=None):
    """Writes the files of a run."""
    folder.mkdir(parents=True, exist_ok=True)
    result = result_of() if result is None else result
    (folder / RESULT).write_text(json.dumps(result))
    if data is not None:
        (folder / DATA).write_text(json.dumps(data))
    return folder


class Seen(HTMLParser):
    """Elements, attributes and text of a page.

    Attributes:
        tags (list[tuple[str, dict]]): Each element with its attributes.
        text (dict[str, str]): Of each section, by id; ``''`` is outside.
    """

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self._at = [], {'': ''}, ''
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == 'section':
            self._at = dict(attrs)['id']
            self.text[self._at] = ''

    def handle_endtag(self, tag):
        if tag == 'section':
            self._at = ''

    def handle_data(self, data):
        self.text[self._at] += data


def harmless(page):
    """Whether nothing is fetched and no script can run."""
    seen = Seen(page)
    for tag, attributes in seen.tags:
        assert tag not in {'script', 'iframe', 'link', 'object', 'img'}, tag
        for name, value in attributes.items():
            assert not name.startswith('on'), (tag, name)
            if name in {'src', 'href', 'xlink:href', 'action', 'data'}:
                assert value.startswith(('#', 'data:image/jpeg;base64,'))
    # styles fetch nothing either
    assert '@import' not in page and 'url(' not in page
    return seen
