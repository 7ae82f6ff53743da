# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""How much an error at each output position of a layer counts."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ...calibration import Images, Session, observing
from ...layers import float_mode
from ..allocate_bits.objectives import Distance, Predictions

Weights = dict[str, list[Tensor]]
"""Of each call of each layer, float32 ``(T,)``, of mean 1; of an image"""

#: part of the weights that all positions have alike
ALIKE = 0.2
#: for the generator of random directions
SEED = 0x77656967


def weights_of_positions(
    session: Session,
    images: Images,
    layers: Mapping[str, nn.Module],
    probes: int,
) -> dict[int, Weights]:
    """Weights of the output positions of layers in the float detector.

    An error at a position counts by the mean square of its gradient, over
    channels and over random directions v, of ``<v, r>``: r are the classes
    and boxes that the detector gives, of what is found with confidence (see
    :class:`Predictions`). Of most detectors a few positions carry nearly all
    of it: those of objects. GuidedQuant (Kim et al., 2025) and RSQ (Sung et
    al., 2025) weigh the rows of language models by like means.

    Args:
        session (Session): The running quantization.
        images (Images): The images; their adapter gives outputs.
        layers (Mapping[str, nn.Module]): Linear layers and convolutions by
            name.
        probes (int): Random directions of an image, each of which takes a
            backward.

    Returns:
        dict[int, Weights]: By image. A layer is left out where a call of it
        does not reach the outputs.
    """
    distance = Predictions(session.model)
    found = {}
    for i, j in enumerate(images.mine):
        session.progress('weights of rows', '', i, len(images.mine))
        with float_mode(session.model):
            squares = _squares(session, images, j, layers, distance, probes)
        found[j] = {name: _of_mean_1(calls) for name, calls in squares.items()}
    return found


def _squares(
    session: Session,
    images: Images,
    j: int,
    layers: Mapping[str, nn.Module],
    distance: Distance,
    probes: int,
) -> Weights:
    """Sums of squared gradients over channels and directions."""
    calls: dict[str, int] = {}
    heard: Weights = {}
    total: Weights = {}

    def count(name: str, level: int, y: Tensor) -> None:
        calls[name] = calls.get(name, 0) + 1

    def hear(name: str, level: int, gradient: Tensor) -> None:
        axis = -1 if isinstance(layers[name], nn.Linear) else -3
        # calls come backwards
        squares = gradient.detach().square().sum(axis).flatten()
        heard.setdefault(name, []).insert(0, squares)

    rng = session.rng(SEED, j)
    with torch.no_grad():
        targets = distance.targets(distance.run(images, j))
    with (
        torch.enable_grad(),
        observing(layers, outputs=count, gradients=hear),
    ):
        residuals = distance.residuals(distance.run(images, j), targets)
        for k in range(probes):
            heard.clear()
            value = sum((r * _direction(r, rng)).sum() for r in residuals)
            if isinstance(value, Tensor) and value.requires_grad:
                value.backward(retain_graph=k < probes - 1)
            for name, squares in heard.items():
                before = total.get(name, [torch.zeros(())] * len(squares))
                total[name] = [
                    a.to(b) + b for a, b in zip(before, squares, strict=True)
                ]
    return {n: t for n, t in total.items() if len(t) == calls[n]}


def _direction(r: Tensor, rng: torch.Generator) -> Tensor:
    return torch.randn(r.shape, generator=rng, device=r.device, dtype=r.dtype)


def _of_mean_1(calls: list[Tensor]) -> list[Tensor]:
    found = []
    for squares in calls:
        mean = squares.mean()
        share = torch.where(mean > 0, squares / mean, 1.0)
        found.append(ALIKE + (1 - ALIKE) * share)
    return found
