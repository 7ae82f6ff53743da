# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Clocks, and the options that several commands have."""

import argparse
import time

import pytest
import torch

from tools.speed import device


def parse(*words):
    parser = argparse.ArgumentParser()
    device.add_size(parser, (320,))
    device.add_device(parser)
    args = parser.parse_args(words)
    device.check_device(parser, args)
    return args


def test_sizes():
    assert device.sides(parse().size) == (320, 320)
    assert device.sides(parse('--size', '64').size) == (64, 64)
    assert device.sides(parse('--size', '800', '1216').size) == (800, 1216)


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--size', '1', '2', '3'], 'a side, or height and width'),
        (['--device', 'cuda'], 'PyTorch sees no GPU here'),
        (['--device', 'tpu'], "invalid choice: 'tpu'"),
    ],
    ids=str,
)
def test_refused(monkeypatch, capsys, words, message):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(SystemExit):
        parse(*words)
    assert message in capsys.readouterr().err


def test_a_cpu_has_a_clock_and_nothing_of_a_gpu():
    assert 0.02 <= device.timed(lambda: time.sleep(0.02), 'cpu') < 5
    device.forget_peak('cpu')
    assert device.peak_mb('cpu') == {}
    assert device.crossings(lambda: 1 / 0, 'cpu') == {}


@pytest.mark.gpu
def test_a_gpu_is_waited_for_and_watched():
    x = torch.randn(4096, 4096, device='cuda')
    one = device.timed(lambda: x @ x, 'cuda')
    many = device.timed(lambda: [x @ x for _ in range(50)], 'cuda')
    assert many > 5 * one > 0
    device.forget_peak('cuda')
    assert device.peak_mb('cuda')['peak_gpu_mb'] >= 64
    found = device.crossings(lambda: float((x + 1).sum()), 'cuda')
    assert found['item'] == 1 and found['copies'] == 1
    assert found['kernels'] >= 2 and found['waits'] >= 1
