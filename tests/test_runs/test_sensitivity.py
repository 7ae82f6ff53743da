# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""``mmdet-ptq sensitivity`` as a user starts it."""

import json

import pytest

from mmdet_ptq.cli import main
from mmdet_ptq.engine.score_file import ScoreFile
from mmdet_ptq.engine.scoring import Scoring
from mmdet_ptq.errors import NumericError
from mmdet_ptq.quant_cfg import load_recipe, parse_quant_cfg

#: neck and head alone, so that few layers are measured
CONFIG = """
_base_ = r'{base}'
quant_cfg = dict(
    recipe='uniform', bits='w4a4',
    rules=[dict(match='@backbone', skip=True)])
"""
WORDS = ('--calib-num', '2', '--rank-num', '1', '--verify-num', '3')


@pytest.fixture(scope='module')
def measure(tiny, tmp_path_factory):
    """Runs the command; gives exit code and work dir."""
    config = tmp_path_factory.mktemp('config') / 'neck.py'
    config.write_text(CONFIG.format(base=tiny.config['retinanet']))

    def run(work, *words, config=config):
        place = ['--work-dir', str(work), '--device', 'cpu']
        given = [str(config), str(tiny.checkpoint['retinanet'])]
        return main(['sensitivity', *given, *place, *WORDS, *words])

    return run


@pytest.fixture(scope='module')
def done(measure, tmp_path_factory):
    """The work dir of one whole run."""
    work = tmp_path_factory.mktemp('done')
    assert measure(work, '--check', '3') == 0
    return work


def found_in(work):
    return json.loads((work / 'sensitivity.json').read_text())


def test_what_a_run_leaves(done, tiny):
    found = found_in(done)
    parts = found['parts']
    own = {'neck', 'bbox_head', '@neck', '@head'}
    assert {p.split('.')[0] for p in parts} == own
    # both ways, weights and inputs apart, and all at once
    assert len(found['scores']['output']) == 4 * len(parts) + 1
    # all, and the three that are checked
    assert len(found['scores']['ap']) == 4
    assert set(found['layers']) == {
        n for layers in parts.values() for n in layers
    }
    assert len(found['check']['output']['pairs']) == 3
    images = [*found['about']['images'], found['about']['verify']]
    assert [len(names) for names in images] == [2, 1, 3]
    assert all('/train/' in name for names in images for name in names)
    page = (done / 'sensitivity.html').read_text()
    assert page.count('<svg') >= 6 and 'Keep th' in page


def test_what_is_suggested_is_so(done, measure, tmp_path):
    """Measured with the rules, the score and the size are those told."""
    told = found_in(done)['suggestion']['output']
    assert told['after'] < told['before'] and told['mb_after'] > 0
    own = parse_quant_cfg(load_recipe(str(done / 'sensitivity_rules.py')))
    assert own.rules[-len(told['rules']) :] == told['rules']
    plain = tmp_path / 'plain.py'
    base = found_in(done)['about']['config']
    plain.write_text(f"_base_ = r'{base}'\nquant_cfg = dict(_delete_=True)\n")
    recipe = ['--recipe', str(done / 'sensitivity_rules.py')]
    assert measure(tmp_path, *recipe, config=plain) == 0
    again = found_in(tmp_path)
    assert again['scores']['output']['all']['score'] == told['after']
    assert again['size']['quantized'] == told['mb_after']
    assert found_in(done)['size']['quantized'] == told['mb_before']


@pytest.mark.parametrize('stop_at', [20, 40])
def test_stopped_and_resumed(
    done, measure, tmp_path, monkeypatch, capsys, stop_at
):
    """Everything is as if nothing had been; no score is taken twice."""
    writes = [0]
    write = ScoreFile.write

    def counted(self):
        write(self)
        writes[0] += 1
        if writes[0] == stop_at:
            raise KeyboardInterrupt

    monkeypatch.setattr(ScoreFile, 'write', counted)
    assert measure(tmp_path, '--check', '3') == 130
    assert 'with --resume to go on' in capsys.readouterr().err
    assert found_in(tmp_path) != found_in(done)
    assert measure(tmp_path, '--check', '3', '--resume') == 0
    assert found_in(tmp_path) == found_in(done)


@pytest.mark.parametrize(
    ('lines', 'told'),
    [
        (
            "test_evaluator = dict(_delete_=True, type='LVISMetric')",
            'AP is verified by CocoMetric or VOCMetric',
        ),
        ('model = dict(test_cfg=dict(score_thr=1.1))', 'finds nothing on the'),
        (
            "quant_cfg = dict(recipe='uniform', bits='w4a4', rules=[dict("
            "match='neck.*', weight=dict(type='ChannelGroups', bits=8, "
            'widths=[8, 4], channels=3))])',
            '2 widths do not fit',
        ),
    ],
)
def test_what_is_wrong_with_ap_comes_first(
    measure, tiny, tmp_path, capsys, monkeypatch, lines, told
):
    """Before any other score; nothing is left that a next run would meet."""
    monkeypatch.setattr(Scoring, 'evaluate', None)
    config = tmp_path / 'wrong.py'
    config.write_text(f"_base_ = r'{tiny.config['retinanet']}'\n{lines}\n")
    assert measure(tmp_path, '--check', '3', config=config) == 1
    assert told in capsys.readouterr().err
    assert not (tmp_path / 'sensitivity.json').exists()


def test_a_suggestion_that_fails(measure, tmp_path, monkeypatch, capsys):
    """The scores are there all the same, and the page says why."""

    def failing(self, name, session):
        raise NumericError('conv: Inf')

    monkeypatch.setattr(Scoring, 'once', failing)
    assert measure(tmp_path, '--score', 'feature') == 0
    said = capsys.readouterr().out
    words = 'this was tried, and failed (conv: Inf)'
    assert words in ' '.join(said.split()) and 'weights' in said
    assert words in (tmp_path / 'sensitivity.html').read_text()
    # nothing is tried again
    monkeypatch.setattr(Scoring, 'once', None)
    assert measure(tmp_path, '--score', 'feature', '--resume') == 0


LEARNS = """
_base_ = r'{base}'
quant_cfg = dict(
    recipe='gptq_recon', bits='w4a4',
    pass_args=dict(Reconstruct=dict(iters=2)),
    rules=[dict(match=['@backbone', '@neck'], skip=True)])
"""


@pytest.fixture(scope='module')
def learned(measure, tiny, tmp_path_factory):
    """Config and work dir of a run of a recipe that learns."""
    folder = tmp_path_factory.mktemp('learned')
    config = folder / 'learns.py'
    config.write_text(LEARNS.format(base=tiny.config['retinanet']))
    assert measure(folder / 'work', config=config) == 0
    return config, folder / 'work'


@pytest.mark.parametrize('at', ['unit', 'score', 'suggestion'])
def test_a_recipe_that_learns_is_stopped(
    learned, measure, tmp_path, monkeypatch, at
):
    """What was learned is not learned again, and all is as without a stop."""
    config, whole = learned
    told = []

    def stopping(self, stage, item, done, total):
        told.append((stage, done))
        if stop and stop(stage, done):
            raise KeyboardInterrupt

    def learning(stage, done):
        return stage == 'reconstruction' and done >= 1

    stops = {
        'unit': learning,
        'score': lambda stage, done: (stage, done) == ('output', 3),
        'suggestion': lambda *at: ('output', 3) in told and learning(*at),
    }
    stop = stops[at]
    monkeypatch.setattr(Scoring, 'progress', stopping)
    assert measure(tmp_path, config=config) == 130
    page = tmp_path / 'sensitivity.html'
    assert page.exists() == (at == 'suggestion')
    if page.exists():
        assert 'not tried to the end' in page.read_text()
    stop = None
    told.clear()
    assert measure(tmp_path, '--resume', config=config) == 0
    # the first unit, which was learned, is not begun again
    stages = [stage for stage, _ in told]
    count = stages.index('output') if 'output' in stages else len(stages)
    assert ('reconstruction', 0.0) not in told[:count]
    assert found_in(tmp_path) == found_in(whole)
    assert page.read_text() == (whole / 'sensitivity.html').read_text()
    assert not list(tmp_path.glob('ptq_resume*'))


def test_scores_of_something_else(done, measure, capsys):
    before = (done / 'sensitivity.json').read_bytes()
    for words, told in (
        (['--check', '3'], 'is there already'),
        (['--resume', '--bits', 'w5a5'], 'of another config, quant_cfg'),
    ):
        assert measure(done, *words) == 1
        assert told in capsys.readouterr().err
    assert (done / 'sensitivity.json').read_bytes() == before


def test_feature_sees_no_head(measure, tmp_path, capsys):
    assert measure(tmp_path, '--score', 'feature', '--bits', 'w3a3') == 0
    found = found_in(tmp_path)
    own = {'neck', '@neck'}
    assert {p.split('.')[0] for p in found['parts']} == own
    assert found['scores']['feature']['all']['score'] > 0
    assert 'keep th' in capsys.readouterr().out.lower()
