# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What acts where a config says nothing."""

from inspect import signature

from mmdet_ptq.losses import DetectionLoss
from mmdet_ptq.passes import Observe, Reconstruct
from mmdet_ptq.quant_cfg import parse_quant_cfg, recipe_names
from mmdet_ptq.quant_cfg.defaults import with_defaults


def default(cls, name):
    return signature(cls.__init__).parameters[name].default


def test_each_part_has_all_its_arguments():
    learn = [dict(type='AdaRound', beta=(10, 2))]
    fisher = dict(type='FisherLoss', damping=0.5)
    (found,) = with_defaults(
        [dict(type='Reconstruct', losses=[fisher], learn=learn, iters=3)]
    )
    arguments = list(signature(Reconstruct.__init__).parameters)[1:]
    assert list(found) == ['type', *arguments]
    assert found['iters'] == 3 and found['holdout'] == 0.125
    assert found['learn'] == [
        dict(
            type='AdaRound',
            lr=None,
            reg=0.01,
            warmup=0.2,
            beta=[10, 2],
            schedule='linear',
        )
    ]
    (loss,) = found['losses']
    assert (loss['damping'], loss['form']) == (0.5, 'normalized')
    of = loss['of']
    assert of['type'] == 'DetectionLoss'
    assert of['theta_i'] == default(DetectionLoss, 'theta_i')
    # the originals stay
    assert fisher == dict(type='FisherLoss', damping=0.5)
    assert learn == [dict(type='AdaRound', beta=(10, 2))]


def test_a_default_that_is_a_part_has_its_own():
    (found,) = with_defaults([dict(type='Observe')])
    assert default(Observe, 'observer') == dict(type='LpObserver', p=2.4)
    assert found == dict(
        type='Observe',
        observer=dict(type='LpObserver', p=2.4, search='auto', steps=100),
        instance_observer=dict(
            type='InstanceObserver', iterations=300, period=75
        ),
    )


def test_spelling_out_changes_nothing_that_acts():
    for name in recipe_names():
        config = parse_quant_cfg(dict(recipe=name, bits='w4a4'))
        whole = config.spelled_out()
        again = parse_quant_cfg(whole)
        assert again.spelled_out() == whole
        for a, b in zip(config.built_passes, again.built_passes, strict=True):
            assert with_defaults(settings(a)) == with_defaults(settings(b))


def settings(one):
    """Attributes of a pass, its parts as configs."""
    return {
        k: list(v) if isinstance(v, tuple) else v
        for k, v in vars(one).items()
        if not k.startswith('_') and k != 'correction'
    }
