# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The benchmark on a tiny detector."""

import json
import resource

import pytest

from tools.speed import benchmark, unit_step

WORDS = ['--images', '2', '--repeats', '1', '--threads', '1', '--iters', '7']
PARTS = ('survey', 'weight ranges', 'calibration', 'activation ranges')


@pytest.fixture
def run(tiny, tmp_path, monkeypatch):
    """Runs the benchmark; gives what it wrote."""
    config = str(tiny.config['retinanet'])
    names = {'one': config, 'other': config}
    monkeypatch.setattr(benchmark, 'DETECTORS', names)
    monkeypatch.setattr(unit_step, 'CONFIG', config)
    out = tmp_path / 'a' / 'found.json'

    def call(*words):
        words = [*WORDS, *words, '--out', str(out)]
        assert benchmark.main(words) == 0
        return json.loads(out.read_text())

    return call


def test_ratios_of_a_rectangle(run, capsys):
    found = run('--only', 'one', '--size', '64', '96')
    assert found['settings']['size'] == [64, 96]
    assert found['settings']['device'] == 'cpu'
    assert found['machine'] and found['steps'] == {}
    (one,) = found['detectors'].values()
    assert one['calibrate'] > 0 and one['forward'] > 0
    assert all(one['stages'][part] >= 0 for part in PARTS)
    assert sum(one['stages'].values()) <= 1.1 * one['calibrate']
    assert one['peak_rss_mb'] > 100
    # a CPU's have neither
    assert not {'peak_gpu_mb', 'crossings_float'} & set(one)
    assert capsys.readouterr().out.startswith('one: calibrate ')


def test_memory_is_that_of_one_detector(run):
    def peak():
        found = run('--only', 'one', '--size', '64')['detectors']
        return found['one']['peak_rss_mb']

    own = peak()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    memory = bytearray(b'1') * ((max(own, before) + 500) << 20)
    del memory  # now this process has had more
    assert peak() < own + 250


def test_what_was_measured_in_the_same_way_stays(run):
    run('--only', 'one', '--size', '64')
    found = run('--only', '--size', '64', '--step-batches', '1')
    assert set(found['detectors']) == {'one'}
    assert found['steps']['1']['step_ms'] > 0
    assert set(run('--only', 'other', '--size', '64')['detectors']) == {
        'one',
        'other',
    }
    assert set(run('--only', 'other', '--size', '96')['detectors']) == {
        'other'
    }


def test_each_device_has_a_file(monkeypatch):
    monkeypatch.setattr('torch.cuda.is_available', lambda: True)
    for device, name in (('cpu', 'benchmark'), ('cuda', 'benchmark_cuda')):
        args = benchmark.parse_args(['--device', device])
        assert args.out == f'docs/results/{name}.json'
