# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The page of measurements."""

from pathlib import Path

from tools.docs.make_measured_doc import (
    document,
    in_words,
    reconstruct_section,
)

ROOT = Path(__file__).parents[3]


def test_page_is_up_to_date(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert document() == Path('docs/measured.md').read_text()


def test_whole_run():
    lines = reconstruct_section(
        dict(
            full=dict(
                command='c',
                machine='a GPU',
                size=[800, 1333],
                images=64,
                iters=2000,
                found=dict(minutes=31.4, units=33, peak_gib=7.25),
            )
        )
    )
    assert '2000 steps for each of 33 units on a GPU: 31 min' in lines[-2]


def test_sizes_of_every_benchmark():
    # a side as older files have it, a side, height and width
    assert in_words(512) == in_words([512]) == '512 x 512'
    assert in_words([800, 1216]) == '800 x 1216'
