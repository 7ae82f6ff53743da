# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Data and networks of the toy study; see ``toy_regression.py``.

Several networks of a task (replicas, from different initial weights) are
one list of tensors with a leading axis: weight ``[R, out, in]``, bias
``[R, out]`` and so on. Everything is float64.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from sklearn.datasets import load_iris
from torch import Tensor
from torch.nn import functional as F

Params = list[Tensor]
# The first layer and the prediction layer are left out, as the paper's
# recipe leaves them out of low-bit quantization.
LAYERS = (1, 2)


@dataclass
class Task:
    """Data of one task and the sizes of its networks.

    Every replica has its own draw of the data, so that no verdict hangs on
    one split. Without the axis R it is the task of one replica.

    Attributes:
        name (str): ``'regression'`` or ``'classification'``.
        x (Tensor): Training inputs ``[R, N, in]``; also the calibration
            set.
        y (Tensor): Targets: float ``[R, N, 1]`` or class indices
            ``[R, N]``.
        x_test (Tensor): Held-out inputs.
        y_test (Tensor): Held-out targets.
        sizes (tuple[int, ...]): Widths from input to output, five of them.
    """

    name: str
    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    sizes: tuple[int, ...]

    def at(self, replica: int) -> 'Task':
        """The task of one replica."""
        data = (self.x, self.y, self.x_test, self.y_test)
        return Task(self.name, *(t[replica] for t in data), self.sizes)

    def loss(self, raw: Tensor, y: Tensor) -> Tensor:
        """Loss of each sample: squared error or cross-entropy.

        Args:
            raw (Tensor): Network output ``[..., N, out]``.
            y (Tensor): Targets of these samples.

        Returns:
            Tensor: ``[..., N]``.
        """
        if self.name == 'regression':
            return (raw - y).square().sum(-1)
        log_p = F.log_softmax(raw, dim=-1)
        index = y.expand(log_p.shape[:-1]).unsqueeze(-1)
        return -log_p.gather(-1, index).squeeze(-1)

    def output(self, raw: Tensor) -> Tensor:
        """What a user reads off: the value, or class probabilities."""
        return raw if self.name == 'regression' else raw.softmax(-1)

    def skill(self, raw: Tensor, y: Tensor) -> Tensor:
        """1 if perfect, 0 for the best answer that ignores the input.

        ``R^2 = 1 - MSE / Var(y)`` for regression, accuracy corrected for
        chance, ``(accuracy - 1/3) / (2/3)``, for classification: the same
        scale for both tasks.

        Args:
            raw (Tensor): Network output ``[..., N, out]``.
            y (Tensor): Targets.

        Returns:
            Tensor: ``[...]``.
        """
        if self.name == 'regression':
            variance = y.squeeze(-1).var(-1, correction=0)
            return 1 - self.loss(raw, y).mean(-1) / variance
        chance = 1 / self.sizes[-1]
        right = (raw.argmax(-1) == y).to(raw.dtype).mean(-1)
        return (right - chance) / (1 - chance)


def make_tasks(seed: int, replicas: int, width: int = 24) -> list[Task]:
    """The two data sets, each with a half that no network is trained on.

    Regression: ``y = x^2`` for x in [-1, 1), so that y has the range of a
    probability. Classification: Iris, each half with 25 of each species,
    features standardised by the training half.

    Args:
        seed (int): Draws x and splits Iris.
        replicas (int): R, the number of draws.
        width (int): Hidden units a layer; ``width^2`` weights in each of
            the middle layers.

    Returns:
        list[Task]: Regression, classification.
    """
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.uniform(-1, 1, (2, replicas, 75, 1)))
    iris = load_iris()
    labels = iris.target.astype(np.int64)
    # [2, R, 75]: indices of the training and the test half
    split = np.stack([halves(labels, rng) for _ in range(replicas)], 1)
    features = iris.data.astype(np.float64)[split]
    mean = features[0].mean(1, keepdims=True)
    spread = features[0].std(1, keepdims=True)
    z = torch.from_numpy((features - mean) / spread)
    t = torch.from_numpy(labels[split])
    hidden = (width,) * 3
    return [
        Task('regression', x[0], x[0] ** 2, x[1], x[1] ** 2, (1, *hidden, 1)),
        Task('classification', z[0], t[0], z[1], t[1], (4, *hidden, 3)),
    ]


def halves(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Indices ``[2, N / 2]`` with as many of each class in both rows."""
    kinds = np.unique(labels)
    orders = [rng.permutation(np.flatnonzero(labels == k)) for k in kinds]
    halves = [order.reshape(2, -1) for order in orders]
    return np.concatenate(halves, 1)


def init_params(
    sizes: Sequence[int], replicas: int, generator: torch.Generator
) -> Params:
    """Torch's default: uniform within ``1 / sqrt(inputs)``."""
    params = []
    for n_in, n_out in pairwise(sizes):
        for shape in ((replicas, n_out, n_in), (replicas, n_out)):
            u = torch.rand(shape, generator=generator, dtype=torch.float64)
            params.append((2 * u - 1) / math.sqrt(n_in))
    return params


def forward(params: Params, x: Tensor, start: int = 0) -> Tensor:
    """Output of a ReLU network, from the input of layer ``start`` on.

    Args:
        params (list[Tensor]): Weight and bias of each layer; leading axes
            broadcast.
        x (Tensor): ``[..., N, in]``: input of that layer.
        start (int): First layer to apply.

    Returns:
        Tensor: ``[..., N, out]``.
    """
    for i in range(2 * start, len(params), 2):
        x = x @ params[i].mT + params[i + 1].unsqueeze(-2)
        if i + 2 < len(params):
            x = x.relu()
    return x


def layer_io(params: Params, x: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    """Input of a layer and its output before the ReLU."""
    for i in range(layer):
        x = forward(params[2 * i : 2 * i + 2], x).relu()
    return x, forward(params[2 * layer : 2 * layer + 2], x)


def train(
    task: Task, params: Params, steps: int, snapshots: int = 10
) -> tuple[Params, dict[int, Params]]:
    """Full-batch Adam with a cosine schedule; no decay, no tricks.

    Adam works element by element, so replicas do not touch each other.

    Args:
        task (Task): Task with its data.
        params (list[Tensor]): Initial parameters; not changed.
        steps (int): Number of steps.
        snapshots (int): How many states to keep besides the first, at
            steps that grow in geometric progression.

    Returns:
        tuple: Trained parameters, and the parameters by step.
    """
    keep = {round(steps ** ((i + 1) / snapshots)) for i in range(snapshots)}
    kept = {0: [p.clone() for p in params]}
    params = [p.clone().requires_grad_() for p in params]
    optimizer = torch.optim.Adam(params, lr=1e-2)
    for step in range(steps):
        rate = 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.param_groups[0]['lr'] = 1e-2 * rate
        optimizer.zero_grad()
        loss = task.loss(forward(params, task.x), task.y)
        loss.mean(-1).sum().backward()
        optimizer.step()
        if step + 1 in keep:
            kept[step + 1] = [p.detach().clone() for p in params]
    return [p.detach() for p in params], kept
