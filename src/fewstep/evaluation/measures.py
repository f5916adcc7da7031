"""Quality as numbers: small functions of tensors. Features are (N, D), each of length 1."""

from __future__ import annotations

import torch
from torch import Tensor


def frechet(generated: Tensor, real: Tensor) -> float:
    """Squared Fréchet distance of two sets' normal distributions (Heusel et al. 2017, arXiv:1706.08500).

    |m - n|² + tr(A + B - 2 (A B)^½); the last as the symmetric (A^½ B A^½)^½, which has its trace.
    """
    m, n = generated.double().mean(dim=0), real.double().mean(dim=0)
    a, b = _covariance(generated), _covariance(real)
    root = _matrix_root(a)
    shared = _matrix_root(root @ b @ root)
    return float((m - n).square().sum() + (a.trace() + b.trace() - 2 * shared.trace()))


def _covariance(rows: Tensor) -> Tensor:
    centred = rows.double() - rows.double().mean(dim=0)
    return centred.T @ centred / max(1, len(rows) - 1)


def _matrix_root(matrix: Tensor) -> Tensor:
    """The square root of a symmetric matrix without negative eigenvalues but by rounding."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root


def rmse(pictures: Tensor, references: Tensor) -> float:
    """Root mean square difference of uint8 pictures (N, 3, H, W), as colours in [0, 1]; of each, averaged."""
    parts = zip(pictures.split(64), references.split(64), strict=True)  # fp32 copies of few at a time
    errors = [(a.float() - b.float()).div(255).square().mean(dim=(1, 2, 3)).sqrt() for a, b in parts]
    return float(torch.cat(errors).mean())


def sharpness(pictures: Tensor) -> Tensor:
    """Variance of the Laplacian of luminance, of uint8 pictures (N, 3, H, W), colours in [0, 1]; (N,).

    The focus measure of Pech-Pacheco et al. (ICPR 2000): fine edges raise it, blur lowers it, and so
    noise raises it too.
    """
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float32, device="cpu").view(1, 3, 1, 1)
    luminance = (pictures.float() / 255 * weights).sum(dim=1)  # (N, H, W)
    inner = luminance[:, 1:-1, 1:-1]
    around = (
        luminance[:, :-2, 1:-1] + luminance[:, 2:, 1:-1] + luminance[:, 1:-1, :-2] + luminance[:, 1:-1, 2:]
    )
    return (around - 4 * inner).flatten(1).var(dim=1)


def distance(features: Tensor, references: Tensor) -> float:
    """Cosine distance of pairs, averaged; in [0, 2]."""
    return float(1 - (features * references).sum(dim=1).mean())


def diversity(features: Tensor, seeds: int) -> float:
    """Cosine distance between the pictures of one prompt, over all pairs and prompts; nan with one seed.

    Rows are prompt by prompt, `seeds` of each.
    """
    groups = features.unflatten(0, (-1, seeds))  # (P, S, D)
    first, second = torch.triu_indices(seeds, seeds, offset=1)
    return float(1 - (groups[:, first] * groups[:, second]).sum(dim=-1).mean())


def share_of_true(flags: Tensor) -> float:
    """The part that is true, of (N,) bool; nan of nothing."""
    return float(flags.double().mean())
