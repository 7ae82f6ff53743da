# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The toy networks and their data."""

import numpy as np
import pytest
import torch

pytest.importorskip('sklearn')
pytest.importorskip('matplotlib')

from tools.analysis_tools.toy import networks


def test_replicas_do_not_touch_each_other():
    for task in networks.make_tasks(0, replicas=3, width=5):
        start = networks.init_params(
            task.sizes, 3, torch.Generator().manual_seed(0)
        )
        together = networks.train(task, start, 20)[0]
        alone = networks.train(task.at(2), [p[2] for p in start], 20)[0]
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[2], b, rtol=1e-8, atol=1e-10)
        assert (task.x[0] != task.x[1]).any()


def test_halves_share_no_flower():
    """By index: some flowers of Iris have the same measurements."""
    labels = np.repeat(np.arange(3), 50)
    train, test = networks.halves(labels, np.random.default_rng(0))
    assert sorted([*train, *test]) == list(range(150))
    assert np.bincount(labels[train]).tolist() == [25, 25, 25]


def test_skill():
    tasks = networks.make_tasks(0, replicas=1)
    regression, classification = (t.at(0) for t in tasks)
    y = regression.y_test
    assert regression.skill(y, y) == 1
    mean = y.mean().expand_as(y)
    assert regression.skill(mean, y).item() == pytest.approx(0, abs=1e-12)
    y = classification.y_test
    right = torch.nn.functional.one_hot(y, 3).double()
    assert classification.skill(right, y).item() == pytest.approx(1)
    always = torch.tensor([1.0, 0, 0]).expand(75, 3)
    assert classification.skill(always, y).item() == pytest.approx(0)
