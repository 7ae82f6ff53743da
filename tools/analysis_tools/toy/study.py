# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What the toy study measures; see ``toy_regression.py``."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mmdet_ptq.quantizers import Ranges, UniformQuantizer
from tools.analysis_tools.toy.networks import Params, Task, forward, layer_io


def noise_study(
    task: Task,
    params: Params,
    sigmas: Sequence[float],
    draws: int,
    generator: torch.Generator,
) -> dict:
    """Damage by noise on all parameters (Fig. 2 of the paper).

    The same draws serve all strengths, so curves are smooth and strength 0
    is the unperturbed network exactly. ``gaussian`` has standard deviation
    sigma; ``uniform`` is on [-sigma, sigma), which has sigma / sqrt(3), as
    in the paper; ``relative_*`` multiplies sigma by the root mean square
    of the tensor, which is how a quantization step scales.

    Args:
        task (Task): Measured on its test half.
        params (list[Tensor]): Trained replicas.
        sigmas (Sequence[float]): Strengths.
        draws (int): Noise draws a replica.
        generator (torch.Generator): Source of the noise.

    Returns:
        dict: For each kind, ``[sigma][R]``, medians over draws:
        ``output_mse``, ``normalised_mse`` (over the variance of the
        outputs), ``raw_mse`` (the same before the softmax) and ``skill``.
    """
    clean = forward(params, task.x_test)
    shown = task.output(clean)
    # variance of each output over the samples, summed like the error
    spread = shown.var(-2, correction=0).mean(-1)
    raw_spread = clean.var(-2, correction=0).mean(-1)
    found = {}
    for kind in ('gaussian', 'uniform'):
        noise = []
        for p in params:
            shape = (draws, *p.shape)
            if kind == 'gaussian':
                n = torch.randn(shape, generator=generator, dtype=p.dtype)
            else:
                n = torch.rand(shape, generator=generator, dtype=p.dtype)
                n = 2 * n - 1
            noise.append(n)
        for prefix in ('', 'relative_'):
            rows = dict(output_mse=[], normalised_mse=[], raw_mse=[], skill=[])
            for sigma in sigmas:
                moved = []
                for p, n in zip(params, noise, strict=True):
                    size = sigma
                    if prefix:
                        axes = tuple(range(1, p.dim()))
                        rms = p.square().mean(axes, keepdim=True).sqrt()
                        size = sigma * rms
                    moved.append(p + size * n)
                raw = forward(moved, task.x_test)
                mse = (task.output(raw) - shown).square().mean((-1, -2))
                mse = mse.quantile(0.5, dim=0)
                rows['output_mse'].append(mse.tolist())
                rows['normalised_mse'].append((mse / spread).tolist())
                mse = (raw - clean).square().mean((-1, -2))
                mse = mse.quantile(0.5, dim=0) / raw_spread
                rows['raw_mse'].append(mse.tolist())
                skill = task.skill(raw, task.y_test).quantile(0.5, dim=0)
                rows['skill'].append(skill.tolist())
            found[prefix + kind] = rows
    return found


def candidates(weight: Tensor, bits: int, ratios: Sequence[float]) -> Tensor:
    """One weight quantized with each clipping range ``ratio * max|w|``.

    Args:
        weight (Tensor): ``[out, in]``.
        bits (int): Bit-width of the symmetric uniform quantizer.
        ratios (Sequence[float]): Clipping ranges over ``max|w|``.

    Returns:
        Tensor: ``[C, out, in]`` in the dtype of ``weight``.
    """
    quantizer = UniformQuantizer(bits, symmetric=True, role='weight')
    flat = weight.reshape(1, -1).to(torch.float32)
    high = flat.abs().max() * torch.tensor([list(ratios)])
    found = quantizer.trial(flat, Ranges(-high, high))
    return found[0].reshape(-1, *weight.shape).to(weight.dtype)


def output_gradients(task: Task, params: Params, layer: int) -> Tensor:
    """``dL_i / dO_i`` for each sample, the g of Eq. 3: ``[N, out]``."""
    _, out = layer_io(params, task.x, layer)
    return torch.func.grad(rest_loss(task, params, layer))(out)


def rest_loss(
    task: Task, params: Params, layer: int
) -> Callable[[Tensor], Tensor]:
    """Training loss, summed over samples, as a function of ``O``."""

    def loss(out: Tensor) -> Tensor:
        """Loss for the output ``[N, out]`` of the layer, before ReLU."""
        raw = forward(params, out.relu(), layer + 1)
        return task.loss(raw, task.y).sum()

    return loss


def output_curvatures(task: Task, params: Params, layer: int) -> Tensor:
    """Exact ``d2L_i / dO_i2`` of each sample: ``[N, out, out]``."""
    _, out = layer_io(params, task.x, layer)

    def one(o: Tensor, y: Tensor) -> Tensor:
        """Loss of one sample for the output ``[out]`` of the layer."""
        return task.loss(forward(params, o.relu()[None], layer + 1), y).sum()

    return torch.func.vmap(torch.func.hessian(one))(out, task.y)


def weight_hessian(task: Task, params: Params, layer: int) -> Tensor:
    """Exact Hessian of the mean training loss in one layer's weights.

    Args:
        task (Task): Task with its data.
        params (list[Tensor]): One network: no replica axis.
        layer (int): Index of the layer.

    Returns:
        Tensor: ``[W, W]`` for W weights, row-major.
    """
    x, _ = layer_io(params, task.x, layer)
    shape = params[2 * layer].shape

    def loss(flat: Tensor) -> Tensor:
        """Mean training loss for the flattened weight."""
        out = x @ flat.reshape(shape).mT + params[2 * layer + 1]
        return rest_loss(task, params, layer)(out) / len(task.x)

    flat = params[2 * layer].flatten()
    return torch.func.hessian(loss)(flat)


def scale_study(
    task: Task, params: Params, layer: int, bits: int, ratios: Sequence[float]
) -> dict[str, Tensor]:
    """Every calibration metric against the clipping range of one layer.

    Only this layer's weight is quantized. All metrics are means over the
    training samples i, with ``D_i = O^_i - O_i``:

    - ``weight_mse``: ``mean (w^ - w)^2``, the local error of Fig. 3;
    - ``output_mse``: ``mean D_i^2``;
    - ``fisher``: ``sum_c g_ic^2 D_ic^2``, Eq. 3;
    - ``output_diagonal``: the same with half the diagonal of the exact
      output Hessian in place of g^2: what Eq. 3 approximates;
    - ``hessian``: ``(w^ - w)^T H (w^ - w) / 2``, the green line of Fig. 6;
    - ``train_loss``, ``test_loss``, ``test_skill``: what comes of it.

    Args:
        task (Task): Task with its data.
        params (list[Tensor]): One network: no replica axis.
        layer (int): Index of the layer.
        bits (int): Bit-width.
        ratios (Sequence[float]): Clipping ranges over ``max|w|``.

    Returns:
        dict[str, Tensor]: ``[C]`` each.
    """
    weight = params[2 * layer]
    quantized = candidates(weight, bits, ratios)
    delta = quantized - weight
    x, _ = layer_io(params, task.x, layer)
    moved = x @ delta.mT
    g = output_gradients(task, params, layer)
    h = torch.diagonal(output_curvatures(task, params, layer), 0, 1, 2)
    flat = delta.flatten(1)
    exact = ((flat @ weight_hessian(task, params, layer)) * flat).sum(1) / 2
    changed = list(params)
    changed[2 * layer] = quantized
    changed[2 * layer + 1] = params[2 * layer + 1].expand(len(flat), -1)
    test = forward(changed, task.x_test)
    seen = task.loss(forward(changed, task.x), task.y)
    return dict(
        weight_mse=flat.square().mean(1),
        output_mse=moved.square().mean((1, 2)),
        fisher=(g.square() * moved.square()).sum(-1).mean(-1),
        output_diagonal=(h * moved.square()).sum(-1).mean(-1) / 2,
        hessian=exact,
        train_loss=seen.mean(-1),
        test_loss=task.loss(test, task.y_test).mean(-1),
        test_skill=task.skill(test, task.y_test),
    )
