# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Which recipes and widths are tried, and in which order."""

from mmdet_ptq.engine.auto.goal import Goal, Trial
from mmdet_ptq.engine.auto.search import SIZES, WIDTHS, Search
from mmdet_ptq.quant_cfg import parse_bits


class Bench:
    """Detectors that lose what a table says, and take what bits say.

    Args:
        lost (dict): By recipe, points lost by widths; others lose 9. What is
            mixed loses ``mixed`` times its distance to the wide one.
        mixed (float): Points for each bit operation below 64.
        missing (tuple): Recipes that do not fit.
        predictions (float, optional): Points that are lost where they have
            8 bits, which spares 100 operations; None: that is not tried.
    """

    def __init__(self, lost, mixed=0.1, missing=(), predictions=None):
        self.lost, self.mixed, self.missing = lost, mixed, missing
        self.predictions = predictions
        self.asked, self.budgets = [], []

    def make(self, recipe, bits, rules, scope):
        words = f'{recipe} {bits}' + ' mixed' * bool(rules)
        self.asked.append(f'{words} {scope}'.strip())
        if recipe in self.missing:
            return None
        found = parse_bits(bits)
        bops, mb = found.weight * found.act, found.weight
        drop = self.lost.get(recipe, {}).get(bits, 9.0) / 100
        if rules:
            bops = mb = rules[0]['budget']
            drop = self.mixed * (64 - bops) / 100
        if scope:
            drop += self.predictions / 100
        elif self.predictions is not None:
            bops, mb = bops + 100, mb + 1
        return Trial(recipe, bits, rules, scope, drop=drop, mb=mb, bops=bops)

    def mix(self, narrow, wide, budget):
        self.budgets.append((narrow.title, wide, budget))
        return [dict(budget=budget)]

    def search(self, kind, limit, recipes=('uniform', 'gptq')):
        scope = self.predictions is not None
        search = Search(Goal(kind, limit), recipes, self.make, self.mix, scope)
        return search.run(), search


def test_down_to_the_goal_then_dearer_ones_below_it():
    lost = dict(
        uniform={'w8a8': 0.0, 'w6a6': 0.1, 'w4a8': 0.4, 'w4a6': 0.6},
        gptq={'w4a6': 0.2, 'w4a4': 0.7},
    )
    bench = Bench(lost)
    best, search = bench.search('max_drop', 0.005)
    assert bench.asked[:7] == [
        'uniform w8a8',
        'uniform w6a6',
        'uniform w4a8',
        # two in a row that lose too much
        'uniform w4a6',
        'uniform w4a4',
        'gptq w4a6',
        'gptq w4a4',
    ]
    # w4a6 is below what uniform reached, w4a4 and w3a4 lost too much
    assert bench.asked[7] == 'gptq w3a4'
    # between w4a4 (16, too much) and w4a6 (24, within): 20 loses 4.4
    assert bench.budgets == [
        ('gptq w4a4', 'w4a6', 20.0),
        ('gptq w4a4', 'w4a6', 22.0),
        ('gptq w4a4', 'w4a6', 23.0),
    ]
    assert best.title == 'gptq w4a6' and best in search.trials


def test_a_single_failure_is_no_reason_to_stop():
    """Six bits of inputs may lose more than four of weights."""
    lost = dict(uniform={'w8a8': 0.0, 'w6a6': 0.8, 'w4a8': 0.4})
    best, _ = Bench(lost).search('max_drop', 0.005, ('uniform',))
    assert best.bits == 'w4a8'


def test_mixed_widths_go_below():
    lost = dict(uniform={'w8a8': 0.0, 'w6a6': 9.0, 'w4a8': 9.0})
    best, search = Bench(lost, mixed=0.02).search(
        'max_drop', 0.005, ('uniform',)
    )
    # 64 to 36: 50 loses 0.28, 43 loses 0.42, 39.5 loses 0.49
    assert [t.bops for t in search.trials if t.rules] == [50, 43, 39.5]
    assert best.bops == 39.5 and best.rules


def test_mixed_is_what_loses_least_below():
    lost = dict(
        uniform={'w8a8': 0.0, 'w6a6': 2.0, 'w4a8': 9.0},
        gptq={'w6a6': 0.9, 'w4a8': 0.7},
    )
    bench = Bench(lost, mixed=0.01)
    best, _ = bench.search('max_drop', 0.005)
    assert bench.budgets[0] == ('gptq w4a8', 'w8a8', 48.0)
    assert best.title == 'gptq w4a8 mixed'


def test_where_nothing_loses_there_is_nothing_to_mix():
    lost = dict(uniform=dict.fromkeys(WIDTHS, 0.0))
    bench = Bench(lost)
    best, _ = bench.search('max_drop', 0.005, ('uniform',))
    assert best.bits == WIDTHS[-1] and not bench.budgets
    assert bench.asked == [f'uniform {bits}' for bits in WIDTHS]


def test_a_drop_that_cannot_be_kept():
    bench = Bench(dict(uniform={'w8a8': 1.0}, gptq={'w8a8': 0.8}))
    best, search = bench.search('max_drop', 0.005)
    assert best is None and not bench.budgets
    assert bench.asked == [
        f'{r} {b}' for r in ('uniform', 'gptq') for b in ('w8a8', 'w6a6')
    ]
    assert search.goal.nearest(search.trials).title == 'gptq w8a8'


def test_a_recipe_that_does_not_fit_is_left():
    lost = dict(uniform={'w8a8': 0.0})
    bench = Bench(lost, missing=('gptq',))
    best, search = bench.search('max_drop', 0.005)
    assert bench.asked.count('gptq w6a6') == 1
    assert 'gptq w4a8' not in bench.asked
    assert best.recipe == 'uniform' and None not in search.trials


def test_the_best_within_a_size():
    lost = dict(
        uniform={'w8a8': 0.0, 'w6a8': 0.2, 'w4a8': 0.9},
        gptq={'w4a8': 0.3},
    )
    bench = Bench(lost, mixed=0.001)
    best, _ = bench.search('target_size', 5.0)
    assert bench.asked == [
        'uniform w8a8',
        'uniform w6a8',
        'uniform w4a8',
        'gptq w4a8',
        'gptq w4a8 mixed',
        'gptq w4a8 mixed',
    ]
    # with the next width, then with the widest
    assert bench.budgets == [
        ('gptq w4a8', 'w6a8', 5.0),
        ('gptq w4a8', 'w8a8', 5.0),
    ]
    assert best.rules and best.mb == 5.0


def test_what_rules_bring_along_is_taken_off_the_budget():
    class Heavy(Bench):
        def make(self, recipe, bits, rules, scope):
            trial = super().make(recipe, bits, rules, scope)
            more = 0.25 if rules else 0.0
            return Trial(**dict(vars(trial), mb=trial.mb + more))

    bench = Heavy(dict(uniform={}), mixed=0.001)
    best, _ = bench.search('target_size', 5.0, ('uniform',))
    assert [budget for *_, budget in bench.budgets] == [5.0, 4.75, 5.0, 4.75]
    assert best.mb == 5.0


def test_a_size_that_cannot_be_kept():
    bench = Bench({})
    best, search = bench.search('target_size', 1.0)
    assert best is None
    assert bench.asked == [f'uniform {bits}' for bits in SIZES]
    assert search.goal.nearest(search.trials).bits == SIZES[-1]


def test_operations_count_weights_and_inputs():
    bench = Bench(dict(uniform={'w4a6': 0.5}), mixed=1.0)
    best, _ = bench.search('target_bops', 25.0, ('uniform',))
    assert bench.asked[:4] == [f'uniform {b}' for b in WIDTHS[:4]]
    assert bench.budgets[0] == ('uniform w4a6', 'w4a8', 25.0)
    assert best.bits == 'w4a6' and not best.rules


def test_predictions_in_8_bits_where_they_lose_little():
    lost = dict(uniform={'w8a8': 0.0, 'w6a6': 0.2})
    bench = Bench(lost, predictions=0.1, mixed=1.0)
    best, search = bench.search('max_drop', 0.005, ('uniform',))
    assert bench.asked[:3] == [
        'uniform w8a8',
        'uniform w8a8 first_last_8',
        'uniform w6a6 first_last_8',
    ]
    assert all(word.endswith('first_last_8') for word in bench.asked[1:])
    assert (best.bits, best.scope, best.bops) == ('w6a6', 'first_last_8', 36)
    assert len(search.trials) == len(bench.asked)


def test_predictions_stay_float_where_they_lose_much():
    lost = dict(uniform={'w8a8': 0.0, 'w6a6': 0.2})
    bench = Bench(lost, predictions=1.0, mixed=1.0)
    best, _ = bench.search('max_drop', 0.005, ('uniform',))
    assert bench.asked[1:3] == [
        'uniform w8a8 first_last_8',
        'uniform w6a6',
    ]
    assert (best.bits, best.scope, best.bops) == ('w6a6', '', 136)


def test_predictions_where_8_bits_lose_too_much():
    """No drop is within the goal: two thousandths more are little."""
    lost = dict(uniform={'w8a8': 0.8}, gptq={'w8a8': 0.3})
    for points, scope in ((0.1, ' first_last_8'), (0.3, '')):
        bench = Bench(lost, predictions=points, mixed=1.0)
        best, _ = bench.search('max_drop', 0.005)
        assert bench.asked[4] == f'gptq w8a8{scope}'
        assert (best.recipe, best.bits) == ('gptq', 'w8a8')


def test_predictions_within_a_size():
    """What they lose is weighed against two thousandths."""
    lost = dict(uniform=dict.fromkeys(SIZES, 0.0))
    for points, scope in ((0.1, 'first_last_8'), (0.5, '')):
        bench = Bench(lost, predictions=points, mixed=1.0)
        best, _ = bench.search('target_size', 7.0, ('uniform',))
        assert (best.bits, best.scope) == ('w6a8', scope)
