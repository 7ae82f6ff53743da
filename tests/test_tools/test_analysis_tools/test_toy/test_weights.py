# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""How weights are distributed and rounded."""

import math

import numpy as np
import pytest
import torch

pytest.importorskip('sklearn')
pytest.importorskip('matplotlib')

from tools.analysis_tools.toy import study, weights


def test_shapes_of_known_densities():
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


def test_uniform_levels_have_the_least_error():
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


def test_psi_counts_codes():
    """Rounding psi gives the code, but for the zone between midpoints."""
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
