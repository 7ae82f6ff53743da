# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""How long evaluations will take."""

import pytest
from sensitivity_kit import at_the_end

from mmdet_ptq.cost import count_macs
from mmdet_ptq.engine.pace import LEAST, minutes, shares
from mmdet_ptq.passes.measure_sensitivity import Entry

NONE = frozenset()


def test_from_the_first_layer_that_changed_on():
    def look(session):
        entries = [
            Entry('first', frozenset({'backbone.0'}), NONE),
            Entry('same', frozenset({'backbone.0'}), NONE),
            Entry('late', frozenset({'backbone.0'}), frozenset({'tower'})),
            Entry('early', NONE, frozenset({'tower'})),
        ]
        none = Entry('', NONE, NONE)
        macs = count_macs(session.model, session.graph)
        return shares(session, none, entries), macs

    found, macs = at_the_end(look)
    total = sum(map(sum, macs.values()))
    tail = sum(macs['tower']) + sum(macs['out'])
    assert LEAST < tail / total < 0.5
    assert found == pytest.approx([1, LEAST, tail / total, 1])


@pytest.mark.parametrize(
    ('seconds', 'words'),
    [(0.2, '1 s'), (45.4, '45 s'), (89, '89 s'), (150, '2 minutes')],
)
def test_in_words(seconds, words):
    assert minutes(seconds) == words
