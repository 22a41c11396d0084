"""Ridge least squares from second moments alone: the activations themselves are never kept."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..products import as_precise_as


# Shares of the mean eigenvalue, from hardly any pull to what the map was, to almost nothing else.
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
# Where the search for the best begins.
_MIDDLE = 2


@dataclass
class Moments:
    """Sums over tokens, weighted or not, of what a linear map W0 is given, x (k,), and what it leaves of its targets
    y (d,), e = y - W0 x: all that is needed to say what a change of W0 would do.

    Attributes:
        start: W0 (d, k) in fp32.
        gram: fp64 (k, k), sum of x x'.
        missing: fp64 (k, d), sum of x e'.
        left: sum of |e|^2.
        square: sum of |y|^2.
        tokens: how many were summed.
    """

    start: Tensor
    gram: Tensor
    missing: Tensor
    left: float = 0.0
    square: float = 0.0
    tokens: int = 0

    @classmethod
    def of(cls, start: Tensor) -> "Moments":
        """Of no token yet; W0 (d, k) in any dtype."""
        outputs, inputs = start.shape
        sums = (torch.zeros(inputs, size, dtype=torch.float64, device=start.device) for size in (inputs, outputs))
        return cls(start.detach().float(), *sums)

    def add(self, x: Tensor, y: Tensor, weights: Tensor | None = None) -> None:
        """Add tokens: x (tokens, k) and y (tokens, d); products are taken in fp32, on a GPU as precisely as x is, and
        summed in fp64.

        Args:
            x: inputs.
            y: targets.
            weights: (tokens,) of at least 0, how much each token counts; None is 1 each. One of 0 is still counted
                among `tokens`.
        """
        given, x, y = x, x.float(), y.float()
        if weights is not None:
            roots = weights.to(x).sqrt().unsqueeze(1)
            x, y = roots * x, roots.to(y) * y
        with as_precise_as(given):
            error = y - x @ self.start.T
            self.gram += x.T @ x
            self.missing += x.T @ error
        self.left += error.double().square().sum().item()
        self.square += y.double().square().sum().item()
        self.tokens += len(x)

    def error(self, change: Tensor | None = None) -> float:
        """sum |(W0 + D) x - y|^2 / sum |y|^2 for a change D (d, k), or for W0 as it is; 0 is perfect."""
        left = self.left
        if change is not None:
            mapped = self.gram.to(change.dtype) @ change.T
            left += (change.T.double() * (mapped - 2 * self.missing)).sum().item()
        return max(left, 0.0) / self.square if self.square else 0.0


@dataclass(frozen=True)
class Fit:
    """A change of a map: D (d, k), the ridge it was found with, and its error on tokens it was not fitted to."""

    change: Tensor
    ridge: float
    error: float


def ridge_solution(moments: Moments, ridge: float) -> Tensor | None:
    """D (d, k) that minimises sum |(W0 + D) x - y|^2 + r |D|^2, where r is `ridge` times the mean eigenvalue of the
    Gram matrix: D' = (G + r I)^-1 X'E, with E = Y - X W0'.

    Source: Hoerl and Kennard, Ridge Regression (Technometrics 12, 1970), shrunk to W0 and not to 0. Solved in fp32,
    in fp64 where that fails: what rounding changes lies along eigenvectors that hardly occur in the inputs.

    Args:
        moments: of the calibration tokens.
        ridge: share of the mean eigenvalue, greater than 0.

    Returns:
        fp32 or fp64; None where the matrix is singular all the same.
    """
    strength = ridge * moments.gram.diagonal().mean()
    for dtype in (torch.float32, torch.float64):
        matrix = moments.gram.to(dtype, copy=True)
        matrix.diagonal().add_(strength.to(dtype))
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if failed.item():
            continue
        change = torch.cholesky_solve(moments.missing.to(dtype), factor)
        if change.isfinite().all():
            return change.T
    return None


def best_fit(fit: Moments, held_out: Moments) -> Fit | None:
    """Of the solutions on some tokens, one for each of `RIDGES`, that which errs least on others.

    Downhill from the middle of `RIDGES`: the error falls and then rises with the ridge.

    Returns:
        None where nothing errs less than the map as it is.
    """
    errors: dict[int, float] = {}
    best: Fit | None = None

    def error(place: int) -> float:
        nonlocal best
        if place not in errors:
            change = ridge_solution(fit, RIDGES[place]) if 0 <= place < len(RIDGES) else None
            errors[place] = float("inf") if change is None else held_out.error(change)
            if change is not None and (best is None or errors[place] < best.error):
                best = Fit(change, RIDGES[place], errors[place])
        return errors[place]

    place = _MIDDLE
    step = 1 if error(place + 1) < error(place) else -1
    while error(place + step) < error(place):
        place += step
    return best if held_out.tokens and best is not None and best.error < held_out.error() else None
