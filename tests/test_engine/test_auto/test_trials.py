# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What is made once, and what is not made at all."""

import json
import logging
from types import SimpleNamespace

import pytest
from mmdet.utils import register_all_modules
from mmengine.config import Config
from sensitivity_kit import INIT, Attentive, at_the_end

from mmdet_ptq.engine.auto.goal import Goal, Trial
from mmdet_ptq.engine.auto.trials import Trials, _check_attention, _short
from mmdet_ptq.engine.held_out import split_images
from mmdet_ptq.engine.score_file import ScoreFile
from mmdet_ptq.errors import (
    BudgetError,
    CalibrationError,
    NumericError,
    PTQError,
    QuantConfigError,
)
from mmdet_ptq.quant_cfg import Calibration, load_recipe, parse_quant_cfg

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
    file.part('whole').update(mb=8.0, bops=9e9)
    content = json.dumps(load_recipe('uniform'), sort_keys=True, default=str)
    key = json.dumps(['uniform', 'w4a4', [], '', 7, _short(content)])
    file.part('trials')[key] = dict(vars(KNOWN))
    runner = SimpleNamespace(
        detector=None,
        cfg=cfg,
        logger=logging.getLogger('auto'),
        work_dir=tmp_path,
    )
    split = split_images(cfg, Calibration(num_samples=1), 1, 1)
    return Trials(runner, split, file, Goal('max_drop', 0.005), OWN, 7)


def test_what_is_known_is_not_made_again(trials, caplog):
    with caplog.at_level(logging.INFO, 'auto'):
        assert trials('uniform', 'w4a4', []) == KNOWN
    assert 'uniform w4a4: +1.00 points lost, 2 MB of 8, 25 %' in caplog.text
    assert '1 G BOPs of 9, 11 %, beyond the goal' in caplog.text


def failing(error):
    def made(*_):
        raise error

    return made


@pytest.mark.parametrize(
    ('error', 'told'),
    [
        (QuantConfigError('no'), 'gptq is left out: no'),
        (NumericError('conv: NaN'), 'gptq w3a3 is left out: conv: NaN'),
        (CalibrationError('no row'), 'gptq w3a3 is left out: no row'),
        (BudgetError('no way'), 'gptq w3a3 is left out: no way'),
    ],
)
def test_what_fails_is_left_out(trials, monkeypatch, caplog, error, told):
    """Its reason is kept, and told each time; it is not tried again."""
    files = []

    def made(recipe, bits, rules, scope, stopped):
        stopped.write_bytes(b'')
        files.append(stopped)
        raise error

    monkeypatch.setattr(trials, '_made', made)
    with caplog.at_level(logging.INFO, 'auto'):
        assert trials('gptq', 'w3a3', []) is None
    assert caplog.messages == [told] and not files[0].exists()
    left = json.loads(trials.file.path.read_text())['left_out']
    assert list(left.values()) == [told]
    monkeypatch.setattr(trials, '_made', failing(KeyboardInterrupt))
    with caplog.at_level(logging.INFO, 'auto'):
        assert trials('gptq', 'w3a3', []) is None
    assert caplog.messages == [told, told]


def test_a_recipe_file_that_changed_is_tried_again(
    trials, monkeypatch, tmp_path
):
    recipe = tmp_path / 'own.py'
    files = []

    def made(name, bits, rules, scope, stopped):
        files.append(stopped)
        return Trial(name, bits, rules, scope, len(files) / 100)

    monkeypatch.setattr(trials, '_made', made)
    for clipped in (0.999, 0.999, 0.99):
        weights = dict(type='PercentileObserver', percentile=clipped)
        recipe.write_text(
            f"_base_ = 'mmdet_ptq::recipes/uniform.py'\n"
            f'pass_args = dict(SetRanges=dict(weight_observer={weights}))\n'
        )
        found = trials(str(recipe), 'w4a4', [])
    assert found.drop == 0.02 and len(set(files)) == 2
    # another width has progress of its own
    trials(str(recipe), 'w3a3', [])
    assert len(set(files)) == 3


def test_trials_of_another_form_are_refused(trials):
    trials.file.part('trials')['x'] = dict(recipe='uniform', ap=1)
    with pytest.raises(PTQError, match=r'none of this package \(.*ap'):
        Trials(trials.runner, trials.split, trials.file, trials.goal, OWN)


def test_what_fails_first_ends_all(trials, monkeypatch):
    trials.file.part('trials').clear()
    monkeypatch.setattr(trials, '_made', failing(NumericError('conv: NaN')))
    with pytest.raises(PTQError, match='gptq w3a3: conv: NaN'):
        trials('gptq', 'w3a3', [])
    assert not trials.file.part('left_out')


def test_a_full_disk_is_no_matter_of_one_trial(trials, monkeypatch):
    monkeypatch.setattr(trials, '_made', failing(PTQError('cannot save')))
    with pytest.raises(PTQError, match='cannot save'):
        trials('gptq', 'w3a3', [])


def test_where_scores_fail_widths_are_not_mixed(trials, monkeypatch, caplog):
    monkeypatch.setattr(trials, '_mixed', failing(CalibrationError('no row')))
    with caplog.at_level(logging.INFO, 'auto'):
        assert trials.mix(KNOWN, 'w8a8', 1e9) == []
    assert 'widths are not mixed: no row' in caplog.text


@pytest.mark.parametrize(
    'kind', ['SplitPositions', 'QuantizeNumerator', 'MixHeads']
)
def test_passes_for_attention_need_one(kind):
    """Asked of the passes, whatever the recipe is called."""
    passes = [dict(type='FoldBatchNorm'), dict(type=kind), *INIT]
    rules = [dict(match='*', weight={}, act={})]
    at_the_end(_check_attention, net=Attentive, rules=rules, passes=passes)
    at_the_end(_check_attention)
    with pytest.raises(QuantConfigError, match='this detector has no atten'):
        at_the_end(_check_attention, passes=passes)


def test_rules_stand_behind_those_of_the_user(trials):
    rules = [dict(match='neck.*', weight=dict(bits=8))]
    found = trials.quant_cfg('uniform', 'w4a4', rules, '')
    assert found['rules'] == [*OWN['rules'], *rules]
    assert found['scope'] == 'first_last_8' and 'pass_args' not in found
    assert parse_quant_cfg(found).rules[-2:] == found['rules']
    chosen = trials.quant_cfg('uniform', 'w4a4', rules, 'repq_det')
    assert chosen['scope'] == 'repq_det'


def test_steps_are_for_all_recipes_that_learn(trials, tmp_path):
    own = tmp_path / 'own.py'
    own.write_text("recipe = 'adaround'\n")
    for recipe in ('gptq_recon', 'reg_ptq', 'brecq', str(own)):
        found = parse_quant_cfg(trials.quant_cfg(recipe, 'w4a4', [], ''))
        steps = [p['iters'] for p in found.passes if 'iters' in p]
        assert steps and set(steps) == {7}, recipe
