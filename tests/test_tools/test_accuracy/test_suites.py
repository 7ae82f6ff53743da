# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What the cells of the accuracy grid are."""

from mmdet_ptq.quant_cfg import parse_quant_cfg
from tools.accuracy.suites import SUITES, quant_cfg

BUDGET = dict(iters=7, images=5, global_every=3, correction=4)


def test_every_cell_of_every_suite_is_a_valid_config():
    cells = {c[1:3] for suite in SUITES.values() for c in suite}
    for method, bits in cells:
        cfg = parse_quant_cfg(quant_cfg(method, bits, 2, BUDGET))
        assert cfg.calibration.seed == 2
        assert cfg.calibration.num_samples == 5


def reconstructions(method):
    cfg = parse_quant_cfg(quant_cfg(method, 'w2a4', 0, BUDGET))
    return [p for p in cfg.passes if p['type'] == 'Reconstruct']


def test_budget_of_a_cell():
    """The global loss is thinned only where there is one."""
    for method, every in (('brecq', [None] * 2), ('reg_ptq', [3])):
        found = reconstructions(method)
        assert [p['iters'] for p in found] == [7] * len(every)
        assert [p.get('global_every') for p in found] == every
    assert reconstructions('uniform') == []
    for method, steps in (('qdrop', None), ('pd_quant', dict(iters=4))):
        (found,) = reconstructions(method)
        assert found.get('distribution_correction') == steps


def test_variants_differ_in_what_they_are_named_after():
    (filtered,) = reconstructions('c=0.0002_i=0.1')
    fisher, loss = filtered['losses']
    assert fisher['of'] == loss
    assert (loss['theta_c'], loss['theta_i']) == (2e-4, 0.1)
    (local,) = reconstructions('local')
    assert [one['type'] for one in local['losses']] == ['FisherLoss']
    (recipe,) = reconstructions('reg_ptq')
    (undamped,) = reconstructions('undamped')
    assert fisher['damping'] == recipe['losses'][0]['damping'] > 0
    rows = dict(type='DetectionLoss', topk_per_level=None)
    assert local['losses'] == [dict(recipe['losses'][0], of=rows)]
    # nothing but the filters and the global loss differs
    assert dict(loss, **rows) == loss and fisher == dict(
        local['losses'][0], of=loss
    )
    # nothing but the damping differs
    assert undamped['losses'] == [dict(fisher, damping=0.0), loss]
    rules = {
        m: quant_cfg(m, 'w2a4', 0, BUDGET).get('rules', [])
        for m in ('uniform_heads', 'llaq_heads', 'float_heads')
    }
    head, prediction = rules['uniform_heads']
    assert prediction == dict(match='@prediction', skip=True)
    assert head['weight']['type'] == 'UniformQuantizer'
    assert rules['llaq_heads'] == []
    assert rules['float_heads'][0]['skip'] is True
    assert rules['float_heads'][0]['match'] == ['@rpn', '@head', '@mask']
