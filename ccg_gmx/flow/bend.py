"""Bonds and angles follow the products of small torsions, batch-last: the curved part of stiff rings.

A ring that bends out of its plane draws its bonds and angles together by products of its torsions, and what closes it
is much stiffer than they are one by one. An affine map knows nothing of products, and couplings need much data to find
them; as a regression they are one least-squares fit, the same for all surroundings.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

RIDGES = 10.0 ** torch.arange(-7.0, 4.1, 0.5, dtype=torch.float64)
"""Ridges to choose from, over the largest eigenvalue of the products' scatter."""
LEAST = 1e-12
"""Smallest part of a scatter that counts as more than rounding."""


class ProductShear(nn.Module):
    """``x_moved = z_moved + A (products of pairs of z_steering - their means)``; all other rows stay.

    The Jacobian is triangular with a unit diagonal, so densities stay as they are.

    Args:
        moved: rows that move.
        steering: rows whose products move them; none of ``moved``.
    """

    moved: Tensor
    steering: Tensor
    first: Tensor
    second: Tensor
    mean: Tensor
    matrix: Tensor

    def __init__(self, moved: Sequence[int], steering: Sequence[int]) -> None:
        super().__init__()
        pairs = torch.triu_indices(len(steering), len(steering))
        self.register_buffer("moved", torch.tensor(moved, dtype=torch.int64))
        self.register_buffer("steering", torch.tensor(steering, dtype=torch.int64))
        self.register_buffer("first", pairs[0])
        self.register_buffer("second", pairs[1])
        self.register_buffer("mean", torch.zeros(pairs.shape[1], 1, dtype=torch.float64))
        self.register_buffer("matrix", torch.zeros(len(moved), pairs.shape[1], dtype=torch.float64))

    def _products(self, v: Tensor) -> Tensor:
        steering = v.index_select(0, self.steering)
        return steering.index_select(0, self.first) * steering.index_select(0, self.second)

    def _shift(self, v: Tensor) -> Tensor:
        return torch.addmm(-self.matrix @ self.mean, self.matrix, self._products(v))

    def push(self, z: Tensor) -> Tensor:
        """Map ``[n, B]`` towards the coordinates."""
        return z.index_add(0, self.moved, self._shift(z))

    def pull(self, x: Tensor) -> Tensor:
        """Map ``[n, B]`` towards the base."""
        return x.index_add(0, self.moved, self._shift(x), alpha=-1.0)

    def push_slope(self, z: Tensor, slope: Tensor) -> Tensor:
        """d ln q / dx ``[n, B]`` from z and ``slope``, d ln q / dz."""
        steering = z.index_select(0, self.steering)
        by_products = self.matrix.T @ slope.index_select(0, self.moved)
        change = torch.zeros_like(steering)
        change.index_add_(0, self.first, by_products * steering.index_select(0, self.second))
        change.index_add_(0, self.second, by_products * steering.index_select(0, self.first))
        return slope.index_add(0, self.steering, change, alpha=-1.0)

    @torch.no_grad()
    def fit(self, w: Tensor) -> None:
        """Set the regression from values ``[n, T]``.

        It is made on the principal directions of the rows that move, for products explain the stiff ones. Each has the
        ridge of the least generalised cross-validation error (Golub, Heath & Wahba,
        doi:10.1080/00401706.1979.10489751), so values that are few or know of no products give nearly none.
        """
        products = self._products(w)
        self.mean.copy_(products.mean(1, keepdim=True))
        moved = w.index_select(0, self.moved)
        scores, back = _principal(moved - moved.mean(1, keepdim=True))
        self.matrix.copy_(back @ _ridge_regression(scores, products - self.mean))


def _principal(centred: Tensor) -> tuple[Tensor, Tensor]:
    """Scores ``[m, T]`` of variance 1 along the principal directions of ``[m, T]``, and the matrix that undoes them."""
    variances, directions = torch.linalg.eigh(centred @ centred.T / centred.shape[1])
    lengths = variances.clamp_min(LEAST * float(variances.max())).sqrt()
    return (directions / lengths).T @ centred, directions * lengths


def _ridge_regression(targets: Tensor, features: Tensor) -> Tensor:
    """Coefficients ``[m, p]`` of targets ``[m, T]`` on features ``[p, T]``, both centred, each with its own ridge."""
    n = features.shape[1]
    values, vectors = torch.linalg.eigh(features @ features.T)
    largest = float(values.max())
    if not largest > 0.0:
        return features.new_zeros(len(targets), len(features))
    values = values.clamp_min(LEAST * largest)
    along = targets @ (features.T @ vectors)
    ridges = largest * RIDGES.to(features)
    kept = values / (values + ridges.view(-1, 1, 1))
    explained = (along.square() * (2.0 * kept - kept.square()) / values).sum(2)
    # One more number is fitted than coefficients: the mean. A fit with nothing left to err cannot be judged.
    free = n - 1.0 - kept.sum(2)
    error = torch.where(free > 0.0, (targets.square().sum(1) - explained) / free.square(), torch.inf)
    best = ridges[error.argmin(0)].view(-1, 1)
    return (along / (values + best)) @ vectors.T
