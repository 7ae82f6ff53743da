# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Scores that survive a stop, and those of something else."""

import json

import pytest

from mmdet_ptq.engine.score_file import VERSION, ScoreFile
from mmdet_ptq.errors import PTQError

ABOUT = dict(checkpoint='c', fingerprint='f', images=[['a'], ['b']], verify=[])


def test_what_was_written_is_there_again(tmp_path):
    path = tmp_path / 's.json'
    file = ScoreFile(path, ABOUT, False)
    assert not path.exists()
    file.part('scores')['ap'] = dict(all=dict(score=1.5))
    file.write()
    again = ScoreFile(path, ABOUT, True)
    assert again.part('scores') == dict(ap=dict(all=dict(score=1.5)))
    # nothing to go on from is no mistake
    assert ScoreFile(tmp_path / 'none', ABOUT, True).part('scores') == {}


def test_a_stop_in_a_write_leaves_the_file_before(tmp_path):
    file = ScoreFile(tmp_path / 's.json', ABOUT, False)
    scores = dict(a=dict(all=dict(score=1.0)))
    file.part('scores').update(scores)
    file.write()
    file.part('scores')['b'] = float('nan')
    with pytest.raises(ValueError, match='JSON'):
        file.write()
    assert ScoreFile(file.path, ABOUT, True).part('scores') == scores


def test_without_resume_nothing_is_lost(tmp_path):
    path = tmp_path / 's.json'
    ScoreFile(path, ABOUT, False).write()
    before = path.read_bytes()
    with pytest.raises(PTQError, match=r'is there already; go on.*--resume'):
        ScoreFile(path, ABOUT, False)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (dict(checkpoint='other'), 'of another checkpoint;'),
        (dict(fingerprint='other'), 'of another config, quant_cfg or version'),
        (dict(images=[['a'], ['c']]), 'of other images;'),
    ],
)
def test_of_something_else(tmp_path, change, words):
    path = tmp_path / 's.json'
    ScoreFile(path, ABOUT, False).write()
    with pytest.raises(PTQError, match=words):
        ScoreFile(path, ABOUT | change, True)


def test_images_that_verify_are_needed_later(tmp_path):
    path = tmp_path / 's.json'
    ScoreFile(path, ABOUT, False).write()
    ScoreFile(path, ABOUT | dict(verify=['v']), True).write()
    # a start without AP keeps them
    ScoreFile(path, ABOUT, True).write()
    with pytest.raises(PTQError, match='of other images that verify'):
        ScoreFile(path, ABOUT | dict(verify=['w']), True)


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('{"version": 1, "abo', 'is no whole file .*cut off'),
        ('[1]', 'of version None, this package writes'),
        ('{"version": 0, "about": {}}', 'of version 0, this package writes'),
        (json.dumps(dict(version=VERSION)), 'no file of this package'),
        (
            json.dumps(dict(version=VERSION, about={}, scores=3)),
            'no file of this package',
        ),
        *(
            (
                json.dumps(dict(version=VERSION, about={}, scores=scores)),
                'no file of this package',
            )
            for scores in ({'ap': 3}, {'ap': {'k': 1}}, {'ap': {'k': {}}})
        ),
    ],
)
def test_cut_off_or_of_another_form(tmp_path, text, words):
    path = tmp_path / 's.json'
    path.write_text(text)
    with pytest.raises(PTQError, match=words):
        ScoreFile(path, ABOUT, True)
    assert path.read_text() == text
