# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Which levels suit the weights of heads."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip('sklearn')

from tools.analysis_tools import head_weights as tool


def test_errors_and_shape(monkeypatch):
    """Of made-up layers: two of a head, and others that do not count."""
    exact = dict(
        a=torch.tensor([[1.0, -1.0, 1.0, -1.0]]),
        b=torch.tensor([[2.0, 0.0, 0.0, 0.0]]),
        backbone=torch.ones(1, 4),
        prediction=torch.ones(1, 4),
        product=None,
    )
    roles = dict(
        a={'head'},
        b={'rpn'},
        backbone={'backbone'},
        prediction={'head', 'prediction'},
        product={'head'},
    )

    def quantize(model, batches, cfg):
        assert batches == ['image'] and model.training is False
        assert cfg['pass_args'] == dict(Reconstruct=dict(iters=0))
        step = {'w2a8': 0.5, 'w3a8': 0.25, 'w4a8': 0.125}[cfg['bits']]
        step = step if cfg['rules'] else step / 2
        if cfg['rules'] is tool.FLOAT_HEADS:
            step = 0
        layers = {
            name: SimpleNamespace()
            if weight is None
            else SimpleNamespace(weight=weight + step)
            for name, weight in exact.items()
        }
        graph = SimpleNamespace(
            layers={n: SimpleNamespace(roles=r) for n, r in roles.items()}
        )
        return SimpleNamespace(graph=graph, layers=layers)

    images = SimpleNamespace(first=lambda: 'image')
    model = SimpleNamespace(training=False)
    monkeypatch.setattr(tool, 'quantize_detector', quantize)
    monkeypatch.setattr(tool, 'from_config', lambda *_: images)
    monkeypatch.setattr(tool, 'init_detector', lambda *_, **__: model)
    row = tool.study('retinanet')
    # four errors of a step over a sum of squares of 4, in both layers
    assert row['w2'] == dict(uniform=0.25, log=0.0625)
    assert row['w4'] == dict(uniform=0.015625, log=0.00390625)
    assert row['layers'] == 2
    # two values alike -2; one of four off: 7/3 - 3
    assert row['kurtosis'] == pytest.approx(-2)


def test_table():
    widths = {f'w{b}': dict(uniform=0.2, log=0.1 * b) for b in (2, 3, 4)}
    row = dict(detector='detr', layers=44, kurtosis=-0.5, **widths)
    text = tool.to_markdown([row])
    assert '| detector | layers | kurtosis | 2 bits | 3 bits |' in text
    assert (
        '| detr | 44 | -0.50 | 0.2000 / 0.2000, 1.00 | '
        '0.2000 / 0.3000, 1.50 | 0.2000 / 0.4000, 2.00 |'
    ) in text
