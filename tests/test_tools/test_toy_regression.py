# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The toy study of Reg-PTQ: its maths on tiny networks, and a short run."""

import importlib
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip('sklearn')
pytest.importorskip('matplotlib')

FOLDER = Path(__file__).resolve().parents[2] / 'tools' / 'analysis_tools'
SHORT = ['--steps', '60', '--replicas', '2', '--draws', '4']
SHORT += ['--candidates', '9']


@pytest.fixture(scope='module')
def tool():
    """Imports a module of the tool by name, as running it there does."""
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module
    sys.path.remove(str(FOLDER))


def run(tool, out, *arguments):
    before = sys.argv
    sys.argv = ['toy_regression.py', '--out', str(out), *SHORT, *arguments]
    try:
        assert tool('toy_regression').main() == 0
    finally:
        sys.argv = before
    return (out / 'toy_regression.json').read_bytes()


@pytest.fixture(scope='module')
def short(tool, tmp_path_factory):
    out = tmp_path_factory.mktemp('toy')
    page = out / 'page.md'
    page.write_text('before\n<!-- toy -->\nold\n<!-- /toy -->\nafter\n')
    run(tool, out, '--doc', str(page))
    return out


@pytest.fixture(scope='module', params=[0, 1])
def tiny(tool, request):
    """One small network whose gradients are not zero."""
    n = tool('toy_networks')
    task = n.make_tasks(3, replicas=2, width=6)[request.param]
    generator = torch.Generator().manual_seed(5)
    params = n.init_params(task.sizes, 2, generator)
    # positive biases: no layer is dead for all samples
    params = [2 * (p.abs() if p.dim() == 2 else p) for p in params]
    return task.at(1), [p[1] for p in params]


def test_json(short):
    found = json.loads((short / 'toy_regression.json').read_text())
    s = found['settings']
    for name in ('regression', 'classification'):
        part = found[name]
        assert set(part['noise']) == {
            'gaussian',
            'uniform',
            'relative_gaussian',
            'relative_uniform',
        }
        for rows in part['noise'].values():
            assert np.shape(rows['skill']) == (len(s['sigmas']), 2)
        for curve in part['scales'].values():
            assert np.shape(curve) == (2, len(s['layers']), 9)
        assert sum(part['weights']['counts']) == 2 * 2 * 24 * 24
        assert {'uniform_2', 'llaq_4', 'distance'} <= set(part['llaq'])
    counts = [found[t]['parameters'] for t in ('regression', 'classification')]
    assert max(counts) < 1.1 * min(counts)
    assert len(found['findings']) == 10
    for row in found['findings'].values():
        assert set(row) == {'claim', 'rule', 'holds', 'numbers', 'text'}
        assert isinstance(row['holds'], bool) and 'nan' not in row['text']


def test_pictures(short):
    names = sorted(p.stem for p in short.glob('*.png'))
    assert names == [
        'error_against_scale',
        'fisher_against_hessian',
        'llaq_levels',
        'noise_sensitivity',
        'weight_histograms',
    ]
    for name in names:
        with Image.open(short / f'{name}.png') as image:
            image.load()
            assert image.width >= 900 and image.height >= 400
            assert np.asarray(image.convert('L')).std() > 10


def test_page(short):
    text = (short / 'page.md').read_text()
    assert text.startswith('before\n<!-- toy -->\nCommand: `python tools/')
    assert text.endswith('|\n<!-- /toy -->\nafter\n') and '\nold\n' not in text
    assert '--steps 60 --replicas 2 --draws 4 --candidates 9 --doc' in text
    found = json.loads((short / 'toy_regression.json').read_text())
    for row in found['findings'].values():
        verdict = 'holds' if row['holds'] else '**does not hold**'
        assert f'| {row["claim"]} | {verdict} | {row["text"]} |' in text


def test_same_seed_same_bytes(short, tool, tmp_path):
    study = tool('toy_regression').study
    again = study(60, 2, 4, 9, 0)
    text = json.dumps(tool('toy_regression').rounded(again)) + '\n'
    assert text == (short / 'toy_regression.json').read_text()
    make = tool('toy_networks').make_tasks
    for a, b in zip(make(0, 1), make(1, 1), strict=True):
        assert (a.x != b.x).any()


def test_replicas_do_not_touch_each_other(tool):
    n = tool('toy_networks')
    for task in n.make_tasks(0, replicas=3, width=5):
        start = n.init_params(task.sizes, 3, torch.Generator().manual_seed(0))
        together = n.train(task, start, 20)[0]
        alone = n.train(task.at(2), [p[2] for p in start], 20)[0]
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[2], b, rtol=1e-8, atol=1e-10)
        assert (task.x[0] != task.x[1]).any()


def test_halves_share_no_flower(tool):
    """By index: some flowers of Iris have the same measurements."""
    n = tool('toy_networks')
    labels = np.repeat(np.arange(3), 50)
    train, test = n._halves(labels, np.random.default_rng(0))
    assert sorted([*train, *test]) == list(range(150))
    assert np.bincount(labels[train]).tolist() == [25, 25, 25]


def test_no_noise_gives_the_base_metric(tool):
    n, study = tool('toy_networks'), tool('toy_study')
    for task in n.make_tasks(0, replicas=2, width=6):
        generator = torch.Generator().manual_seed(0)
        params = n.init_params(task.sizes, 2, generator)
        params = n.train(task, params, 30)[0]
        base = task.skill(n.forward(params, task.x_test), task.y_test)
        found = study.noise_study(task, params, [0.0, 0.1], 3, generator)
        for rows in found.values():
            assert rows['skill'][0] == base.tolist()
            assert rows['output_mse'][0] == rows['raw_mse'][0] == [0, 0]
            assert min(rows['output_mse'][1]) > 0


def test_skill(tool):
    tasks = tool('toy_networks').make_tasks(0, replicas=1)
    regression, classification = (t.at(0) for t in tasks)
    y = regression.y_test
    assert regression.skill(y, y) == 1
    mean = y.mean().expand_as(y)
    assert regression.skill(mean, y).item() == pytest.approx(0, abs=1e-12)
    y = classification.y_test
    right = torch.nn.functional.one_hot(y, 3).double()
    assert classification.skill(right, y).item() == pytest.approx(1)
    always = torch.tensor([1.0, 0, 0]).expand(75, 3)
    assert classification.skill(always, y).item() == pytest.approx(0)


@pytest.mark.parametrize('layer', [0, 1, 2])
def test_fisher_is_eq_3(tiny, tool, layer):
    """Against a loop over samples, each with its own backward pass."""
    n, study = tool('toy_networks'), tool('toy_study')
    task, params = tiny
    ratios = [0.4, 0.8, 1.0]
    found = study.scale_study(task, params, layer, 3, ratios)
    made = study.candidates(params[2 * layer], 3, ratios)
    want = torch.zeros(3, dtype=torch.float64)
    for x, y in zip(task.x, task.y, strict=True):
        inputs, out = n.layer_io(params, x[None], layer)
        out = out.clone().requires_grad_()
        raw = n.forward(params, out.relu(), layer + 1)
        task.loss(raw, y[None]).sum().backward()
        for c in range(3):
            changed = inputs @ made[c].T + params[2 * layer + 1]
            moved = (changed - out.detach())[0]
            for i in range(len(moved)):
                want[c] += (out.grad[0, i] * moved[i]) ** 2 / len(task.x)
    assert want.min() > 0
    torch.testing.assert_close(found['fisher'], want, rtol=1e-10, atol=0)


@pytest.mark.parametrize('layer', [0, 1, 2])
def test_hessian_against_finite_differences(tiny, tool, layer):
    n, study = tool('toy_networks'), tool('toy_study')
    task, params = tiny
    weight = params[2 * layer]
    found = study.weight_hessian(task, params, layer)

    def gradient(flat):
        """By autograd, so that one difference gives a row of H."""
        changed = [p.clone() for p in params]
        changed[2 * layer] = flat.reshape(weight.shape).requires_grad_()
        task.loss(n.forward(changed, task.x), task.y).mean().backward()
        return changed[2 * layer].grad.flatten()

    flat, step = weight.flatten(), 1e-6
    rows = []
    for i in range(len(flat)):
        e = torch.zeros_like(flat)
        e[i] = step
        rows.append((gradient(flat + e) - gradient(flat - e)) / (2 * step))
    want = torch.stack(rows)
    assert want.abs().max() > 1e-3
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-8)


def test_hessian_of_weights_is_that_of_outputs(tiny, tool):
    """A ReLU network is piecewise linear in one layer's weights."""
    n, study = tool('toy_networks'), tool('toy_study')
    task, params = tiny
    ratios = [0.5, 0.9]
    found = study.scale_study(task, params, 1, 4, ratios)
    delta = study.candidates(params[2], 4, ratios) - params[2]
    inputs, _ = n.layer_io(params, task.x, 1)
    h = study.output_curvatures(task, params, 1)
    moved = inputs @ delta.mT
    want = torch.einsum('cni,nij,cnj->c', moved, h, moved) / (2 * len(h))
    torch.testing.assert_close(found['hessian'], want, rtol=1e-9, atol=0)
    diagonal = torch.diagonal(h, 0, 1, 2)
    want = (diagonal * moved**2).sum((1, 2)) / (2 * len(h))
    torch.testing.assert_close(
        found['output_diagonal'], want, rtol=1e-9, atol=0
    )


def test_scale_study_quantizes_one_layer_only(tiny, tool):
    n, study = tool('toy_networks'), tool('toy_study')
    task, params = tiny
    found = study.scale_study(task, params, 1, 4, [0.7, 1.0])
    for c, weight in enumerate(study.candidates(params[2], 4, [0.7, 1.0])):
        changed = [*params[:2], weight, *params[3:]]
        raw = n.forward(changed, task.x_test)
        loss = task.loss(raw, task.y_test).mean()
        assert found['test_loss'][c].item() == pytest.approx(loss.item())
        assert len(weight.unique()) <= 16


def test_shapes_of_known_densities(tool):
    weights = tool('toy_weights')
    n = 200
    u = (torch.arange(n * n, dtype=torch.float64) + 0.5) / (n * n)
    flat = (2 * u - 1).reshape(n, n)
    assert weights.kurtosis(flat).item() == pytest.approx(-1.2, abs=1e-3)
    gauss = torch.special.ndtri(u).reshape(n, n)
    assert weights.kurtosis(gauss).item() == pytest.approx(0, abs=1e-2)
    assert weights.uniform_distance(flat, -1, 1) < 1e-4
    # the distribution function of N(0, 1) is farthest from that of
    # U(-4, 4) where the densities cross
    z = math.sqrt(-2 * math.log(math.sqrt(2 * math.pi) / 8))
    want = 0.5 * (1 + math.erf(z / 2**0.5)) - (z + 4) / 8
    found = weights.uniform_distance(gauss, -4, 4)
    assert found == pytest.approx(want, abs=1e-3)
    codes = torch.arange(16).repeat(5)
    assert weights.code_entropy(codes, 4) == pytest.approx(1)
    assert weights.code_entropy(codes * 0, 4) == 0


def test_uniform_levels_have_the_least_error(tool):
    weights, study = tool('toy_weights'), tool('toy_study')
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(2, 9, 9, generator=generator, dtype=torch.float64)
    ratios = [0.2, 0.5, 0.8, 1.1]
    kept = {0: [w / 2] * 6, 7: [w] * 6}
    found = weights.weight_study(kept, 3, ratios)
    assert found['steps'] == [0, 7] and np.allclose(found['moved'], 1)
    for r, one in enumerate(w):
        made = study.candidates(one, 3, ratios)
        errors = [float((c - one).square().mean()) for c in made]
        best = int(np.argmin(errors))
        assert errors[best] < sorted(errors)[1]
        assert (weights.best_uniform(one, 3, ratios) == made[best]).all()
        clip = ratios[best] * one.abs().max()
        beyond = sum(abs(v) > clip for v in one.flatten().tolist()) / 81
        assert found['clipped'][0][r] == pytest.approx(float(beyond))
        assert 0 < beyond < 0.5


def test_psi_counts_codes(tool):
    """Rounding psi gives the code, but for the zone between midpoints."""
    weights = tool('toy_weights')
    w = torch.randn(40, 40, generator=torch.Generator().manual_seed(0))
    q = weights.fitted(w, 3)
    psi = weights.psi(w, q)
    # the middle of the two smallest levels need not be zero
    codes = q.encode(w[w > 0]) - 4
    assert (codes >= -1).all() and (codes < 0).double().mean() < 0.1
    rounded = psi.round().clamp(0, 3)
    assert (rounded - codes).abs().max() <= 1
    assert (rounded == codes).double().mean() > 0.9
    levels = q.codebook()[0, 4:]
    found = weights.psi(levels, q)
    torch.testing.assert_close(
        found, torch.arange(4.0, dtype=torch.float64), rtol=0, atol=1e-4
    )


def test_half_strength(tool):
    half = tool('toy_findings').half_strength
    sigmas = [0.0, 0.1, 1.0, 10.0]
    rows = dict(skill=[[0.8], [0.8], [0.6], [0.2]])
    assert half(sigmas, rows) == pytest.approx(10**0.5)
    assert half(sigmas, dict(skill=[[0.8], [0.1], [0], [0]])) == 0.1
    assert half(sigmas, dict(skill=[[0.8]] * 4)) is None


def test_chosen(tool):
    curves = dict(a=[[[3, 1, 2]], [[0, 5, 5]]], b=[[[7, 8, 9]], [[4, 6, 2]]])
    chosen = tool('toy_findings').chosen
    assert chosen(curves, 'a', 'b', 'min').tolist() == [[8, 4], [7, 2]]
    assert chosen(curves, 'a', 'b', 'max').tolist() == [[8, 4], [9, 6]]
