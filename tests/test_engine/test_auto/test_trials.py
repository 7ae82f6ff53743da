# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What is made once, and what is not made at all."""

import json
import logging
from types import SimpleNamespace

import pytest
from mmdet.utils import register_all_modules
from mmengine.config import Config

from mmdet_ptq.engine.auto.goal import Goal, Trial
from mmdet_ptq.engine.auto.trials import Trials
from mmdet_ptq.engine.held_out import split_images
from mmdet_ptq.engine.score_file import ScoreFile
from mmdet_ptq.quant_cfg import Calibration, parse_quant_cfg

ABOUT = dict(checkpoint='c', fingerprint='f', images=[], verify=[])
OWN = dict(rules=[dict(match='@mask', skip=True)], scope='first_last_8')
KNOWN = Trial('uniform', 'w4a4', [], '', 0.01, 0.64, 2.0, 1e9, 3.0)


@pytest.fixture
def trials(tiny, tmp_path):
    """Of a run that knows one trial, and has no detector to make another."""
    register_all_modules()
    cfg = Config.fromfile(tiny.config['retinanet'])
    file = ScoreFile(tmp_path / 'auto.json', ABOUT, False)
    file.part('float').update(metric='coco/bbox_mAP', value=0.65)
    file.part('whole').update(mb=8.0, bops=9e9, attention=False)
    key = json.dumps(['uniform', 'w4a4', [], '', 7])
    file.part('trials')[key] = dict(vars(KNOWN))
    runner = SimpleNamespace(
        detector=None, cfg=cfg, logger=logging.getLogger('auto'), work_dir='.'
    )
    split = split_images(cfg, Calibration(num_samples=1), 1, 1)
    return Trials(runner, split, file, Goal('max_drop', 0.005), OWN, 7)


def test_what_is_known_is_not_made_again(trials, caplog):
    with caplog.at_level(logging.INFO, 'auto'):
        assert trials('uniform', 'w4a4', []) == KNOWN
    assert 'uniform w4a4: +1.00 points lost, 2 MB of 8, 25 %' in caplog.text
    assert '1 G BOPs of 9, 11 %, beyond the goal' in caplog.text


def test_a_recipe_for_attention_needs_one(trials):
    assert trials('gptq_attention', 'w4a4', []) is None
    assert len(trials.file.part('trials')) == 1


def test_rules_stand_behind_those_of_the_user(trials):
    rules = [dict(match='neck.*', weight=dict(bits=8))]
    found = trials.quant_cfg('uniform', 'w4a4', rules, '')
    assert found['rules'] == [*OWN['rules'], *rules]
    assert found['scope'] == 'first_last_8' and 'pass_args' not in found
    assert parse_quant_cfg(found).rules[-2:] == found['rules']
    # steps are for recipes that learn
    learned = trials.quant_cfg('gptq_recon', 'w4a4', rules, 'repq_det')
    assert parse_quant_cfg(learned).passes[-1]['iters'] == 7
    assert learned['scope'] == 'repq_det'
