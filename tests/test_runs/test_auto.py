# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""``mmdet-ptq quantize`` with a goal, as a user starts it."""

import json

import pytest
from mmengine.config import Config

from mmdet_ptq.engine.score_file import ScoreFile
from mmdet_ptq.engine.scoring import Scoring

CONFIG = """
_base_ = r'{base}'
quant_cfg = dict(rules=[dict(match='@backbone', skip=True)])
"""
WORDS = ('--calib-num', '2', '--rank-num', '1', '--verify-num', '2')


@pytest.fixture
def auto(ptq, tiny, tmp_path):
    """Runs the command with a config of few quantized layers."""
    config = tmp_path / 'neck.py'
    config.write_text(CONFIG.format(base=tiny.config['retinanet']))

    def run(*words, config=config, **given):
        recipes = ['--recipes', 'uniform', '--no-report', '--no-float-eval']
        return ptq(*WORDS, *recipes, *words, config=config, **given)

    return run


def test_a_size_and_the_config_of_it(auto, ptq, tmp_path, monkeypatch):
    """What was chosen is made again bit for bit by the config."""
    limit = 0.723
    # a recipe that does not fit is left out, and said
    other = tmp_path / 'other.py'
    other.write_text(
        "recipe = 'uniform'\nrules = [dict(match='none.*', skip=True)]\n"
    )
    words = ('--target-size', str(limit), '--recipes', f'uniform,{other}')
    run = auto(*words)
    assert run.code == 0, run.err
    found = json.loads((run.work / 'auto.json').read_text())
    trials = list(found['trials'].values())
    met = [t for t in trials if t['mb'] <= limit]
    assert met and len(met) < len(trials) and found['left_out']
    assert f'{other} is left out: ' in run.log
    # widths were mixed, and the room was used better than by one width
    assert [t for t in met if t['rules']]
    size = run.result['storage_mb']['quantized']
    assert size in [round(t['mb'], 4) for t in met]
    assert f'Best within {limit} MB' in run.out
    assert 'training images held out' in run.out
    assert '<svg' in (run.work / 'auto.html').read_text()
    # the same by the config alone, in another work dir
    config = run.work / 'auto_config.py'
    again = ptq(
        '--no-float-eval',
        '--no-report',
        config=config,
        work=tmp_path / 'again',
    )
    assert again.code == 0, again.err
    assert again.digest == run.digest
    assert again.result['quant_cfg'] == run.result['quant_cfg']
    rules = Config.fromfile(config).quant_cfg.rules
    assert rules[0] == dict(match='@backbone', skip=True)
    # going on, nothing is tried again
    writes = []
    monkeypatch.setattr(ScoreFile, 'write', lambda self: writes.append(1))
    more = auto(*words, '--resume')
    assert (more.code, more.digest, writes) == (0, run.digest, [])


def test_a_goal_that_cannot_be_reached(auto):
    run = auto('--target-size', '0.01')
    assert run.code == 1
    assert 'cannot be reached' in run.out and 'Nearest comes' in run.out
    assert 'uniform w2a8' in run.out and 'To make it all the same' in run.err
    assert (run.work / 'auto_config.py').is_file()
    assert run.digest is None


def test_stopped_and_resumed(auto, monkeypatch):
    count = [0]
    write = ScoreFile.write

    def counted(self):
        write(self)
        count[0] += 1
        if count[0] == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(ScoreFile, 'write', counted)
    words = ('--max-drop', '100')
    assert auto(*words).code == 130
    first = count[0]
    run = auto(*words, '--resume')
    assert run.code == 0, run.err
    found = json.loads((run.work / 'auto.json').read_text())
    # the float detector, one width without the scope, seven with it
    assert len(found['trials']) == 8 and count[0] - first == 9 - 3
    assert run.result['scope'] == 'first_last_8'
    assert run.result['bits'] == 'w3a3'


HEAD = """
_base_ = r'{base}'
quant_cfg = dict(rules=[dict(match=['@backbone', '@neck'], skip=True)])
"""


def test_a_recipe_that_learns_is_stopped(
    auto, tiny, tmp_path, monkeypatch, capsys
):
    """What was learned is not learned again, and all is as without a stop."""
    config = tmp_path / 'head.py'
    config.write_text(HEAD.format(base=tiny.config['retinanet']))
    told, stops = [], []
    progress = Scoring.progress

    def stopping(self, stage, item, done, total):
        progress(self, stage, item, done, total)
        told.append((stage, done))
        if stops and (stage, done) == ('reconstruction', 1):
            stops.pop()
            raise KeyboardInterrupt

    def ptq(*more):
        names = 'uniform,gptq_attention,gptq_recon'
        words = ['--target-size', '0.8', '--recipes', names, *more]
        told.clear()
        return auto(*words, '--iters', '2', config=config, work=work)

    monkeypatch.setattr(Scoring, 'progress', stopping)
    work = tmp_path / 'whole'
    whole = ptq()
    assert whole.code == 0, whole.err
    assert 'gptq_attention is left out: this detector has no' in whole.log
    assert ('reconstruction', 0.0) in told
    work = tmp_path / 'stopped'
    stops.append(True)
    assert ptq().code == 130 and not stops
    assert len(list(work.glob('ptq_resume_trial_*.pth'))) == 1
    run = ptq('--resume')
    assert run.code == 0, run.err
    # the first unit is not begun again
    assert next(d for stage, d in told if stage == 'reconstruction') == 1.0
    assert not list(work.glob('ptq_resume*'))
    assert run.digest == whole.digest

    def kept(one):
        found = json.loads((one.work / 'auto.json').read_text())
        for trial in found['trials'].values():
            del trial['seconds']
        return found

    assert kept(run) == kept(whole)
    recipes = {t['recipe'] for t in kept(run)['trials'].values()}
    assert recipes == {'uniform', 'gptq_recon'}


def test_steps_where_nothing_learns(auto, monkeypatch):
    monkeypatch.setattr(Scoring, 'ap', None)
    run = auto('--max-drop', '1', '--iters', '2')
    assert run.code == 1
    assert '--iters 2: none of --recipes uniform learns in steps' in run.err
