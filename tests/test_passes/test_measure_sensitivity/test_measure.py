# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Scores of a detector of which some layers are quantized."""

import pytest
import torch
from reconstruct_model import RULES, Net
from sensitivity_kit import INIT, Attentive, at_the_end

from mmdet_ptq.errors import NumericError
from mmdet_ptq.layers import quantizing
from mmdet_ptq.passes.measure_sensitivity import (
    Entry,
    Measure,
    Score,
    entries_of,
    find_parts,
    image_score,
)
from mmdet_ptq.passes.measure_sensitivity.measure import weights_held

NONE = Entry('none', frozenset(), frozenset())


class Sum(Score):
    """Sum of all outputs: another one for every setting."""

    name = 'sum'

    def __init__(self, session):
        self.images = range(session.feed.total)
        self.session = session

    def run(self, j):
        return self.session.model(**self.session.feed.batch(j))

    def total(self, seen):
        parts = [float(t.double().sum()) for _, out in seen for t in out]
        return dict(score=sum(parts))


@pytest.mark.parametrize('net', [Net, Attentive])
@pytest.mark.parametrize('learned', [False, True])
def test_the_same_as_without_what_is_kept(net, learned):
    """Every entry, in order, against a whole forward of its own."""
    rules = [dict(match='*', weight={}, act={})]
    passes = [*INIT, *[dict(type='CompensateRounding')] * learned]

    def look(session):
        score = Sum(session)
        entries = entries_of(find_parts(session.graph, session.plan))
        with session.cache() as cache:
            measure = Measure(session, score, cache)
            with measure.watching():
                then = [*entries[1:], None]
                found = [
                    measure(entry, next_)['score']
                    for entry, next_ in zip(entries, then, strict=True)
                ]
            computed = measure.sweep.computed
        for entry, one in zip(entries, found, strict=True):
            with (
                torch.no_grad(),
                quantizing(session.layers, entry.weights, entry.acts),
            ):
                outputs = ((j, score.run(j)) for j in score.images)
                assert one == score.total(outputs)['score'], entry.key
        assert len(set(found)) > len(found) / 2
        # modules: all of them would be computed without it
        modules = sum(1 for m in session.model.modules() if m is not None)
        assert computed < len(entries) * len(score.images) * modules / 2

    at_the_end(look, net=net, rules=rules, passes=passes, count=2)


def test_float_loses_nothing_and_all_is_what_is_deployed():
    def look(session):
        with session.cache() as cache:
            score = image_score('output', session, cache)
            measure = Measure(session, score, cache)
            every = entries_of(find_parts(session.graph, session.plan))[0]
            with measure.watching():
                found = measure(NONE)['score'], measure(every)['score']
        own = []
        with torch.no_grad():
            for j in score.images:
                out = session.model(**session.feed.batch(j))
                exact = Net().eval()(**session.feed.batch(j))
                own.append(
                    torch.cat(
                        [
                            (a - b).square().flatten()
                            for a, b in zip(out, exact, strict=True)
                        ]
                    ).mean()
                )
        return found, float(torch.stack(own).mean())

    (nothing, every), own = at_the_end(look)
    assert nothing == 0
    assert every == pytest.approx(own, rel=1e-5) and own > 1e-4


def test_layers_are_left_as_they_were():
    """What was compensated too."""

    def look(session):
        def state():
            return {
                n: (m.quantized_weight().clone(), m.rounded is None)
                for n, m in session.layers.items()
                if m.weight_quantizer is not None
            }

        before = state()
        with weights_held(session):
            held = state()
        after = state()
        for name, (weight, nearest) in before.items():
            assert torch.equal(weight, held[name][0])
            assert torch.equal(weight, after[name][0])
            assert nearest == after[name][1] and not held[name][1]
        return {nearest for _, nearest in before.values()}

    assert at_the_end(look) == {True}
    learned = [*INIT, dict(type='CompensateRounding')]
    assert at_the_end(look, passes=learned) == {False}


def test_what_is_not_finite_is_named():
    class Broken(Sum):
        def total(self, seen):
            return dict(score=float('nan'), error=float(len(list(seen))))

    def look(session):
        with session.cache() as cache:
            measure = Measure(session, Broken(session), cache)
            with measure.watching():
                measure(entries_of(find_parts(session.graph, session.plan))[1])

    with pytest.raises(NumericError, match=r'alone/weight/backbone.0: score'):
        at_the_end(look, rules=RULES)
