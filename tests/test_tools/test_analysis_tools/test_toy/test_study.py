# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The maths of the toy study, on tiny networks."""

import pytest
import torch

pytest.importorskip('sklearn')
pytest.importorskip('matplotlib')

from tools.analysis_tools.toy import networks, study


@pytest.fixture(scope='module', params=[0, 1])
def tiny(request):
    """One small network whose gradients are not zero."""
    task = networks.make_tasks(3, replicas=2, width=6)[request.param]
    generator = torch.Generator().manual_seed(5)
    params = networks.init_params(task.sizes, 2, generator)
    # positive biases: no layer is dead for all samples
    params = [2 * (p.abs() if p.dim() == 2 else p) for p in params]
    return task.at(1), [p[1] for p in params]


def test_no_noise_gives_the_base_metric():
    for task in networks.make_tasks(0, replicas=2, width=6):
        generator = torch.Generator().manual_seed(0)
        params = networks.init_params(task.sizes, 2, generator)
        params = networks.train(task, params, 30)[0]
        base = task.skill(networks.forward(params, task.x_test), task.y_test)
        found = study.noise_study(task, params, [0.0, 0.1], 3, generator)
        for rows in found.values():
            assert rows['skill'][0] == base.tolist()
            assert rows['output_mse'][0] == rows['raw_mse'][0] == [0, 0]
            assert min(rows['output_mse'][1]) > 0


@pytest.mark.parametrize('layer', [0, 1, 2])
def test_fisher_is_eq_3(tiny, layer):
    """Against a loop over samples, each with its own backward pass."""
    task, params = tiny
    ratios = [0.4, 0.8, 1.0]
    found = study.scale_study(task, params, layer, 3, ratios)
    made = study.candidates(params[2 * layer], 3, ratios)
    want = torch.zeros(3, dtype=torch.float64)
    for x, y in zip(task.x, task.y, strict=True):
        inputs, out = networks.layer_io(params, x[None], layer)
        out = out.clone().requires_grad_()
        raw = networks.forward(params, out.relu(), layer + 1)
        task.loss(raw, y[None]).sum().backward()
        for c in range(3):
            changed = inputs @ made[c].T + params[2 * layer + 1]
            moved = (changed - out.detach())[0]
            for i in range(len(moved)):
                want[c] += (out.grad[0, i] * moved[i]) ** 2 / len(task.x)
    assert want.min() > 0
    torch.testing.assert_close(found['fisher'], want, rtol=1e-10, atol=0)


@pytest.mark.parametrize('layer', [0, 1, 2])
def test_hessian_against_finite_differences(tiny, layer):
    task, params = tiny
    weight = params[2 * layer]
    found = study.weight_hessian(task, params, layer)

    def gradient(flat):
        """By autograd, so that one difference gives a row of H."""
        changed = [p.clone() for p in params]
        changed[2 * layer] = flat.reshape(weight.shape).requires_grad_()
        task.loss(networks.forward(changed, task.x), task.y).mean().backward()
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


def test_hessian_of_weights_is_that_of_outputs(tiny):
    """A ReLU network is piecewise linear in one layer's weights."""
    task, params = tiny
    ratios = [0.5, 0.9]
    found = study.scale_study(task, params, 1, 4, ratios)
    delta = study.candidates(params[2], 4, ratios) - params[2]
    inputs, _ = networks.layer_io(params, task.x, 1)
    h = study.output_curvatures(task, params, 1)
    moved = inputs @ delta.mT
    want = torch.einsum('cni,nij,cnj->c', moved, h, moved) / (2 * len(h))
    torch.testing.assert_close(found['hessian'], want, rtol=1e-9, atol=0)
    diagonal = torch.diagonal(h, 0, 1, 2)
    want = (diagonal * moved**2).sum((1, 2)) / (2 * len(h))
    torch.testing.assert_close(
        found['output_diagonal'], want, rtol=1e-9, atol=0
    )


def test_scale_study_quantizes_one_layer_only(tiny):
    task, params = tiny
    found = study.scale_study(task, params, 1, 4, [0.7, 1.0])
    for c, weight in enumerate(study.candidates(params[2], 4, [0.7, 1.0])):
        changed = [*params[:2], weight, *params[3:]]
        raw = networks.forward(changed, task.x_test)
        loss = task.loss(raw, task.y_test).mean()
        assert found['test_loss'][c].item() == pytest.approx(loss.item())
        assert len(weight.unique()) <= 16
