# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Graphs made by hand, and plans of them."""

import pytest
from plan_kit import graph, node


@pytest.fixture
def small():
    return graph(
        node('backbone.conv1', [[1]], ['stem', 'backbone']),
        node('backbone.conv2', [[2]], ['backbone'], groups=8),
        node('head.cls', [[3], [4]], ['head', 'prediction']),
    )
