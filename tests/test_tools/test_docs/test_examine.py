# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What is found out about one family."""

from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from tools.docs import examine


def test_examine_reports_where_a_family_fails(tmp_path):
    path = tmp_path / 'broken.py'
    path.write_text("model = dict(type='NoSuchDetector')")
    (row,) = examine.examine([path], (8, 8))
    assert not row['built'] and 'NoSuchDetector' in row['why']
    assert not row['runner']


def test_examine_tries_larger_images_then_other_starts():
    tried = []

    def draw(path, size, heads, row):
        row['built'] = True
        tried.append((size, heads))
        if size[0] < 16:
            raise RuntimeError(f'{size[0]} is too small')
        return heads

    quality = {False: 0.9, True: 0.8}

    def find(size):
        return examine.float_run(
            Path('x.py'), (size, size), draw, lambda run: quality[run]
        )

    row, run = find(8)
    assert tried == [
        ((8, 8), False),
        ((16, 16), False),
        ((16, 16), True),
    ]
    # neither is good: the better of them
    assert run is False and row['bfloat16'] == 0.9
    assert row['size'] == [16, 16] and row['float_ok']
    tried.clear()
    row, run = find(1)
    assert tried == [
        ((i, i), heads)
        for i, heads in zip(
            (1, 2, 4, 1), (False, False, False, True), strict=True
        )
    ]
    assert run is None and '4 is too small' in row['why'] and row['built']
    tried.clear()
    quality[False] = 0.9999
    find(16)
    assert tried == [((16, 16), False)]


def test_examine_keeps_the_smallest_config_that_fails(tmp_path):
    paths = [tmp_path / f'{i}.py' for i in range(3)]
    for i, path in enumerate(paths):
        path.write_text(f"model = dict(type='No{i}')")
    (row,) = examine.examine(paths, (8, 8))
    assert row['config'] == '0.py' and 'No0' in row['why']


def test_predictions_are_made_without_gradients(monkeypatch):
    """As the test loop does: PointRend writes into a view."""

    class Writes(nn.Module):
        def test_step(self, batch):
            parts = (torch.ones(2, 2) * self.weight).split(1, 0)
            parts[0][:, 0] = 0
            return []

        weight = nn.Parameter(torch.ones(2, 2))

    session = SimpleNamespace(
        plan=SimpleNamespace(layers={}, uncovered={}),
        graph=SimpleNamespace(uncalled=[]),
    )
    monkeypatch.setattr(examine, 'quantize_detector', lambda *_: session)
    monkeypatch.setattr(examine, 'raw_outputs', lambda *_: [torch.ones(1)])
    run = examine.FloatRun(Writes(), [{}, {}], {}, [torch.ones(1)])
    row = examine.empty_row()
    examine.quantized_run(run, row)
    assert row['predicts'] and row['cosine'] == 1


def test_what_predicts_goes_through_the_runner(monkeypatch, tmp_path):
    model = nn.Linear(2, 2)
    started, went = [], []

    def draw(path, size):
        run = examine.FloatRun(model, [], {}, [])
        return examine.empty_row(config=path.name, size=list(size)), run

    def quantize(run, row):
        # the checkpoint holds the float weights, not what becomes of them
        started.append(run.model.weight.detach().clone())
        with torch.no_grad():
            run.model.weight.zero_()
        row['predicts'] = row['config'] == 'good.py'

    def go(path, folder, row):
        saved = torch.load(folder / 'float.pth')['state_dict']['weight']
        went.append((path.name, torch.equal(saved, started[0])))
        row['runner'] = 'yes'

    monkeypatch.setattr(examine, 'float_run', draw)
    monkeypatch.setattr(examine, 'quantized_run', quantize)
    monkeypatch.setattr(examine, 'runner_run', go)
    first, last = examine.examine([Path('good.py')], (8, 8))
    # the first row is what is known if the runner hangs
    assert first['runner'] == '' and last['runner'] == 'yes'
    assert went == [('good.py', True)] and bool(started[0].any())
    assert len(list(examine.examine([Path('bad.py')], (8, 8)))) == 1
    assert len(went) == 1
