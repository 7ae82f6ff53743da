# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""From where the calls of a layer are counted."""

import pytest
from torch import nn


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.tower = nn.Sequential(nn.Conv2d(3, 3, 1))
        self.once = nn.Conv2d(3, 3, 1)

    def forward(self, maps):
        if maps:
            self.once(maps[0])
        return [self.tower(x) for x in maps]


class Net(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.head = Head()
        self.body = body

    def forward(self, x):
        return self.body(self.head, [x, x[..., ::2, ::2], x[..., ::4, ::4]])


def by_method(head, maps):
    return head.forward(maps)


def by_call(head, maps):
    return head(maps)


def twice(head, maps):
    return head(maps), head(maps)


def by_level(head, maps):
    return [head([x]) for x in maps]


def partly(head, maps):
    return head(maps), head(maps[1:])


def idle(head, maps):
    return head(maps), head([])


def mixed(head, maps):
    return head(maps), head.forward(maps)


@pytest.mark.parametrize(
    ('body', 'calls', 'once', 'heads'),
    [
        (by_call, 3, 1, ('head',)),
        (twice, 3, 1, ('head',)),
        # levels of the detector's own making
        (by_level, 3, 3, ()),
        (by_method, 3, 1, ()),
        (partly, 5, 2, ()),
        (mixed, 6, 2, ()),
        # a call that makes none has no say
        (idle, 3, 1, ('head',)),
    ],
)
def test_counts(kit, body, calls, once, heads):
    graph = kit.look(Net(body))
    assert graph.levels == {'head.once': once, 'head.tower.0': calls}
    assert graph.heads == heads


class Wide(Net):
    """Around the head: a part of like name, a layer that others call."""

    def __init__(self):
        super().__init__(None)
        self.head_neck = nn.Sequential(nn.Conv2d(3, 3, 1))
        self.head.outside = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        maps = [self.head_neck[0](m) for m in (x, x[..., ::2])]
        return self.head.outside(maps[0]), self.head(maps)


def test_what_is_called_beside_a_head_changes_nothing(kit):
    graph = kit.look(Wide())
    assert graph.heads == ('head',)
    assert graph.levels == {
        'head_neck.0': 2,
        'head.outside': 1,
        'head.once': 1,
        'head.tower.0': 2,
    }


def test_a_layer_of_the_detector_itself(kit):
    graph = kit.look(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()))
    assert graph.levels == {'0': 1} and graph.heads == ()
