"""Optimal brain surgeon for whole columns: in which order inputs of a linear map go, the rest refitted every time."""

import torch
from torch import Tensor


# Share of the mean diagonal that is added to the Gram matrix.
DAMPING = 1e-2
# In so many steps everything goes; with fewer units than that, one goes at a time.
STEPS = 2048


def removal_errors(gram: Tensor, weight: Tensor, units: int, damping: float = DAMPING) -> Tensor:
    """What every unit's removal brings the error of a linear map y = W x to, when units go greedily.

    A unit is a run of `columns / units` neighbouring columns B of W. With H = (X'X + r I)^-1 over the columns that are
    left and W refitted to them, its removal adds tr(W_B (H_BB)^-1 W_B') to sum |W x - y|^2 (Hassibi and Stork, Second
    order derivatives for network pruning: Optimal Brain Surgeon, NIPS 1992, equation 5; for a block, Kurtic et al.,
    The Optimal BERT Surgeon, arXiv 2203.07259, equation 4). The least goes; then exactly

        W <- W - W_B (H_BB)^-1 H_B.,    H <- H - H_.B (H_BB)^-1 H_B.

    Where there are more than `STEPS` units, several go in a step, and the updates are exact for all of them together.

    Args:
        gram: X'X (columns, columns), fp64.
        weight: W (outputs, columns).
        units: how many units the columns are.
        damping: r as a share of the mean of the diagonal.

    Returns:
        (units,) fp64, in (0, 1]: the error after the unit's removal and that of all that go before it, refitted, as a
        share of sum |y|^2 + r |W|^2. In ascending order it is the order of removal.
    """
    size = len(gram) // units
    strength = damping * gram.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    gram = gram + strength * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    weight = weight.to(gram, copy=True)
    total = ((weight @ gram) * weight).sum().clamp(min=torch.finfo(torch.float64).tiny)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    at_once = -(-units // STEPS)
    errors, spent = torch.ones(units, dtype=torch.float64, device=gram.device), 0.0
    names = left = torch.arange(units, device=gram.device)
    while len(left):
        added = _added(weight, inverse, left, size)
        order = added.argsort(stable=True)
        spent += _eliminate(weight, inverse, _columns(left[order[:at_once]], size))
        errors[names[left[order[:at_once]]]] = spent / total
        left = left[order[at_once:].sort().values]
        if 2 * len(left) <= len(names):
            columns = _columns(left, size)
            weight, inverse = weight[:, columns], inverse[columns][:, columns]
            names, left = names[left], torch.arange(len(left), device=gram.device)
    return errors.clamp(max=1.0)


def _columns(units: Tensor, size: int) -> Tensor:
    return (units.unsqueeze(1) * size + torch.arange(size, device=units.device)).flatten()


def _added(weight: Tensor, inverse: Tensor, units: Tensor, size: int) -> Tensor:
    """tr(W_B (H_BB)^-1 W_B') of each of these units alone."""
    columns = _columns(units, size)
    if size == 1:
        return weight[:, columns].square().sum(dim=0) / inverse.diagonal()[columns]
    own = weight.T[columns].unflatten(0, (len(units), size))
    blocks = torch.stack([inverse[of][:, of] for of in columns.unflatten(0, (len(units), size))])
    return (own * torch.linalg.solve(blocks, own)).sum(dim=(1, 2))


def _eliminate(weight: Tensor, inverse: Tensor, columns: Tensor) -> float:
    """Take columns out of both, in place, the others refitted; gives the error that this adds."""
    own, block = weight[:, columns], inverse[columns][:, columns]
    across = torch.linalg.solve(block, inverse[columns])
    lost = (own.T * torch.linalg.solve(block, own.T)).sum().item()
    weight.addmm_(own, across, alpha=-1)
    inverse.addmm_(inverse[:, columns], across, alpha=-1)
    return max(lost, 0.0)
