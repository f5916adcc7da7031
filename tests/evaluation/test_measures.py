"""Measures against closed forms, and against counting by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.evaluation import measures
from fewstep.train.bundled import features


def unit(rows: list[list[float]]) -> Tensor:
    return F.normalize(torch.tensor(rows, dtype=torch.float32), dim=1)


# Four pictures in two views each; the second view of "moon" is where "sun, hidden" is asked for.
KNOWN = torch.stack(
    [
        unit([[1, 0, 0], [1, 0.1, 0]]),
        unit([[0, 1, 0], [0, 1, 0.1]]),
        unit([[0, 0, 1], [1, 1, 0]]),
        unit([[-1, 0, 0], [-1, -0.1, 0]]),
    ]
)
LABELS = ["sun", "star", "moon", "sun"]


@pytest.mark.parametrize(
    ("feature", "nearest", "labels"),
    [
        ([1, 0.02, 0], 1, {"sun"}),
        ([1, 0.9, 0], 1, {"moon"}),  # by its second view
        ([1, 0.9, 0], 2, {"moon", "sun"}),
        ([0.1, 1, 0], 2, {"star", "moon"}),  # two views of a picture are one of the nearest
        ([-1, 0, 0.1], 1, {"sun"}),
        ([0, 0, 1], 9, {"sun", "star", "moon"}),  # more than there are
    ],
)
def test_retrieval(feature: list[float], nearest: int, labels: set[str]) -> None:
    words = ["sun", "star", "moon"]
    rows = unit([feature]).expand(len(words), 3)
    found = features.retrieval_hits(rows, KNOWN, LABELS, words, nearest)
    assert found.dtype == torch.bool
    assert {word for word, there in zip(words, found.tolist(), strict=True) if there} == labels


def gaussian(count: int, mean: list[float], deviation: list[float]) -> Tensor:
    """Rows whose sample mean and covariance are exactly these, up to rounding."""
    rows = torch.randn(count, len(mean), generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    rows = rows - rows.mean(dim=0)
    rows = torch.linalg.qr(rows).Q * math.sqrt(count - 1)
    spread: Tensor = rows * torch.tensor(deviation) + torch.tensor(mean)
    return spread


def test_frechet_of_diagonal_gaussians() -> None:
    """|m - n|² + Σ (s - t)²."""
    one = gaussian(60, [0.0, 1.0, 2.0], [1.0, 0.5, 0.0])
    other = gaussian(90, [0.5, 1.0, 0.0], [0.2, 2.0, 0.3])
    expected = 0.25 + 4 + 0.8**2 + 1.5**2 + 0.3**2
    assert measures.frechet(one, other) == pytest.approx(expected, rel=1e-6)
    assert measures.frechet(other, one) == pytest.approx(expected, rel=1e-6)


def test_frechet_does_not_see_a_rotation_of_both() -> None:
    one, other = gaussian(50, [0.0, 1.0], [1.0, 0.3]), gaussian(70, [1.0, 0.0], [0.5, 0.8])
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
    turned = measures.frechet(one @ turn, other @ turn)
    assert turned == pytest.approx(measures.frechet(one, other), rel=1e-6)


def test_frechet_by_the_product_of_covariances() -> None:
    """tr (A B)^½ is the sum of the roots of A B's eigenvalues, also where the two do not commute."""
    generator = torch.Generator().manual_seed(3)
    one, other = (
        torch.randn(40, 5, generator=generator) @ torch.randn(5, 5, generator=generator) for _ in "ab"
    )
    a, b = torch.cov(one.double().T), torch.cov(other.double().T)
    roots = torch.linalg.eigvals(a @ b).real.clamp(min=0).sqrt().sum()
    means = (one.double().mean(dim=0) - other.double().mean(dim=0)).square().sum()
    assert measures.frechet(one, other) == pytest.approx(float(means + a.trace() + b.trace() - 2 * roots))


def test_frechet_of_the_same_is_zero() -> None:
    """With fewer rows than columns too."""
    rows = torch.randn(10, 30, generator=torch.Generator().manual_seed(1))
    assert measures.frechet(rows, rows) == pytest.approx(0, abs=1e-5)


def test_rmse_is_of_colours_from_0_to_1() -> None:
    black = torch.zeros(100, 3, 4, 4, dtype=torch.uint8)
    other = black.clone()
    other[0] = 255  # one of a hundred pictures is as far as can be
    assert measures.rmse(black, other) == pytest.approx(0.01)


def test_distance_of_features() -> None:
    one, other = unit([[1, 0], [1, 0], [1, 1]]), unit([[1, 0], [-1, 0], [1, -1]])
    assert measures.distance(one, other) == pytest.approx((0 + 2 + 1) / 3)


def test_diversity_is_within_prompts() -> None:
    rows = unit([[1, 0], [1, 0], [0, 1], [0, 1], [-1, 0], [1, 0]])
    assert measures.diversity(rows, 2) == pytest.approx((0 + 0 + 2) / 3)
    assert measures.diversity(rows, 3) == pytest.approx(((0 + 1 + 1) + (1 + 1 + 2)) / 6)
    assert math.isnan(measures.diversity(rows, 1))


def test_shares() -> None:
    assert measures.share_of_true(torch.tensor([True, False, True, True])) == 0.75
    assert math.isnan(measures.share_of_true(torch.tensor([], dtype=torch.bool)))
