"""Ridge least squares from second moments alone: the activations themselves are never kept."""

from dataclasses import dataclass

import torch
from torch import Tensor


# Shares of the mean eigenvalue, from hardly any pull to what the map was, to almost nothing else.
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
# Where the search for the best begins.
_MIDDLE = 2


@dataclass
class Moments:
    """Sums over tokens, weighted or not, of products of inputs x (k,) and targets y (d,), in fp64.

    Attributes:
        gram: (k, k), sum of x x'.
        cross: (k, d), sum of x y'.
        square: sum of |y|^2.
        tokens: how many were summed.
    """

    gram: Tensor
    cross: Tensor
    square: float = 0.0
    tokens: int = 0

    @classmethod
    def zeros(cls, inputs: int, outputs: int, device: torch.device) -> "Moments":
        """Of no token yet."""
        made = (torch.zeros(inputs, size, dtype=torch.float64, device=device) for size in (inputs, outputs))
        return cls(*made)

    def add(self, x: Tensor, y: Tensor, weights: Tensor | None = None) -> None:
        """Add tokens: x (tokens, k) and y (tokens, d); products are taken in fp32 and summed in fp64.

        Args:
            x: inputs.
            y: targets.
            weights: (tokens,) of at least 0, how much each token counts; None is 1 each. One of 0 is still counted
                among `tokens`.
        """
        x, y = x.float(), y.float()
        if weights is not None:
            roots = weights.to(x).sqrt().unsqueeze(1)
            x, y = roots * x, roots.to(y) * y
        self.gram += (x.T @ x).to(self.gram)
        self.cross += (x.T @ y).to(self.cross)
        self.square += y.double().square().sum().item()
        self.tokens += len(x)

    def __add__(self, other: "Moments") -> "Moments":
        """Of the tokens of both."""
        return Moments(
            self.gram + other.gram, self.cross + other.cross, self.square + other.square, self.tokens + other.tokens
        )

    def error(self, weight: Tensor) -> float:
        """sum |W x - y|^2 / sum |y|^2 of a linear map W (d, k) in fp64; 0 is perfect."""
        fitted = (weight @ self.gram * weight).sum() - 2 * (weight.T * self.cross).sum()
        return max((fitted.item() + self.square) / self.square, 0.0) if self.square else 0.0


def ridge_solution(moments: Moments, start: Tensor, ridge: float) -> Tensor | None:
    """W (d, k) that minimises sum |W x - y|^2 + r |W - W0|^2, where r is `ridge` times the mean eigenvalue of the Gram
    matrix: W' = (G + r I)^-1 (C + r W0').

    Source: Hoerl and Kennard, Ridge Regression (Technometrics 12, 1970), shrunk to W0 and not to 0. Factored in fp32,
    in fp64 where that fails: what rounding changes lies along eigenvectors that hardly occur in the inputs.

    Args:
        moments: of the calibration tokens.
        start: W0 (d, k) in fp64.
        ridge: share of the mean eigenvalue, greater than 0.

    Returns:
        fp64; None where the matrix is singular all the same.
    """
    strength = ridge * moments.gram.diagonal().mean()
    for dtype in (torch.float32, torch.float64):
        matrix = moments.gram.to(dtype)
        matrix = matrix.clone() if dtype == torch.float64 else matrix
        matrix.diagonal().add_(strength.to(dtype))
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if failed.item():
            continue
        # What is to be added to W0, so that rounding is that of the change alone.
        change = torch.cholesky_solve((moments.cross - moments.gram @ start.T).to(dtype), factor)
        if change.isfinite().all():
            return start + change.T.double()
    return None


def best_ridge(fit: Moments, held_out: Moments, start: Tensor) -> float | None:
    """The ridge whose solution on some tokens errs least on others; None where `start` errs less.

    Downhill from the middle of `RIDGES`: the error falls and then rises with the ridge.
    """
    found: dict[int, float] = {}

    def error(place: int) -> float:
        if place not in found:
            weight = ridge_solution(fit, start, RIDGES[place]) if 0 <= place < len(RIDGES) else None
            found[place] = float("inf") if weight is None else held_out.error(weight)
        return found[place]

    place = _MIDDLE
    step = 1 if error(place + 1) < error(place) else -1
    while error(place + step) < error(place):
        place += step
    return RIDGES[place] if held_out.tokens and error(place) < held_out.error(start) else None
