"""Optimal brain surgeon for whole columns: in which order inputs of a linear map go, the rest refitted every time."""

import math
from functools import partial

import torch
from torch import Tensor

from .replay import replayed


# Share of the mean diagonal that is added to the Gram matrix.
DAMPING = 1e-2
# So many single columns are chosen before the matrices are updated for all of them at once.
PANEL = 256


def removal_errors(gram: Tensor, weight: Tensor, units: int, damping: float = DAMPING) -> Tensor:
    """What every unit's removal brings the error of a linear map y = W x to, when units go greedily.

    A unit is a run of `columns / units` neighbouring columns B of W. With H = (X'X + r I)^-1 over the columns that are
    left and W refitted to them, its removal adds tr(W_B (H_BB)^-1 W_B') to sum |W x - y|^2 (Hassibi and Stork, Second
    order derivatives for network pruning: Optimal Brain Surgeon, NIPS 1992, equation 5; for a block, Kurtic et al.,
    The Optimal BERT Surgeon, arXiv 2203.07259, equation 4). The least goes; then exactly

        W <- W - W_B (H_BB)^-1 H_B.,    H <- H - H_.B (H_BB)^-1 H_B.

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
    weight = weight.to(gram)
    total = ((weight @ gram) * weight).sum().clamp(min=torch.finfo(torch.float64).tiny)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    order, added = _single(weight, inverse) if size == 1 else _runs(weight, inverse, size)
    errors = torch.empty(units, dtype=torch.float64, device=gram.device)
    errors[order] = added.clamp(min=0).cumsum(dim=0) / total
    return errors.clamp(max=1.0)


def _single(weight: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Columns in the order in which they go, and what each adds to the error.

    Of W only T = W'W is needed: the error that column q adds is T_qq / H_qq, and with a = H_.q / H_qq and t = T_.q
    after the removal H is H - H_qq a a' and T is T - a u' - u a', u = t - T_qq a / 2. Only diagonals are kept up to
    date column by column, and whole matrices panel by panel, as in a blocked factorization with pivoting (LAPACK's
    pstrf): what a column chosen in between lacks is made up for by the a and u of its panel.
    """
    products = weight.T @ weight
    names = torch.arange(len(inverse), device=inverse.device)
    order, added = [], []
    while len(names):
        gone, costs = _panel(inverse, products, min(PANEL, len(names)))
        order.append(names[gone])
        added.append(costs)
        left = torch.ones_like(names, dtype=torch.bool).index_fill_(0, gone, False)
        names, inverse, products = names[left], inverse[left][:, left], products[left][:, left]
    return torch.cat(order), torch.cat(added)


def _panel(inverse: Tensor, products: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The next columns to go and what they add; brings H and T up to date in place."""
    panel = _Panel(inverse, products, width)
    if inverse.is_cuda:
        replayed(partial(panel.step, slice(None)), width, inverse.device)
    else:
        for number in range(width):
            panel.step(slice(number))
    inverse.addmm_(panel.a.T * panel.pivots, panel.a, alpha=-1)
    products.addmm_(panel.a.T, panel.u, alpha=-1).addmm_(panel.u.T, panel.a, alpha=-1)
    return panel.gone, panel.tops / panel.pivots


class _Panel:
    """Columns that go before the matrices are updated for all of them.

    How many have gone and which one is next are tensors too: every step is the same work on the same memory.
    """

    def __init__(self, inverse: Tensor, products: Tensor, width: int) -> None:
        self.inverse, self.products = inverse, products
        self.a, self.u = inverse.new_zeros(2, width, len(inverse))
        self.pivots, self.tops = inverse.new_zeros(2, width)
        self.of_inverse, self.of_products = inverse.diagonal().clone(), products.diagonal().clone()
        self.gone = torch.zeros(width, dtype=torch.long, device=inverse.device)
        self.number = self.gone.new_zeros(1)

    def step(self, before: slice) -> None:
        """One more goes. `before` holds the columns that have gone; those that have not may be in it as well, since
        they are zero."""
        chosen = (self.of_products / self.of_inverse).argmin(dim=0, keepdim=True)
        own_a, own_u = (rows[before].index_select(1, chosen).squeeze(1) for rows in (self.a, self.u))
        column, product = (matrix.index_select(0, chosen).squeeze(0) for matrix in (self.inverse, self.products))
        column.addmv_(self.a[before].T, own_a * self.pivots[before], alpha=-1)
        product.addmv_(self.a[before].T, own_u, alpha=-1).addmv_(self.u[before].T, own_a, alpha=-1)
        pivot, top = (values.index_select(0, chosen) for values in (column, product))
        a = column / pivot
        u = torch.addcmul(product, a, top, value=-0.5)
        self.of_inverse.addcmul_(column, a, value=-1).index_fill_(0, chosen, 1.0)
        self.of_products.addcmul_(a, u, value=-2).index_fill_(0, chosen, math.inf)
        kept = (self.a, a.unsqueeze(0)), (self.u, u.unsqueeze(0)), (self.pivots, pivot), (self.tops, top)
        for into, value in (*kept, (self.gone, chosen)):
            into.index_copy_(0, self.number, value)
        self.number += 1


def _runs(weight: Tensor, inverse: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Units in the order in which they go, and what each adds to the error."""
    weight, units = weight.clone(), len(inverse) // size
    names = left = torch.arange(units, device=inverse.device)
    order, added = [], []
    while len(left):
        least = _added(weight, inverse, left, size).argmin()
        order.append(names[left[least]])
        added.append(_eliminate(weight, inverse, _columns(left[least : least + 1], size)))
        left = torch.cat([left[:least], left[least + 1 :]])
        if 2 * len(left) <= len(names):
            columns = _columns(left, size)
            weight, inverse = weight[:, columns], inverse[columns][:, columns]
            names, left = names[left], torch.arange(len(left), device=inverse.device)
    return torch.stack(order), torch.stack(added)


def _columns(units: Tensor, size: int) -> Tensor:
    return (units.unsqueeze(1) * size + torch.arange(size, device=units.device)).flatten()


def _added(weight: Tensor, inverse: Tensor, units: Tensor, size: int) -> Tensor:
    """tr(W_B (H_BB)^-1 W_B') of each of these units alone."""
    columns = _columns(units, size)
    own = weight.T[columns].unflatten(0, (len(units), size))
    blocks = torch.stack([inverse[of][:, of] for of in columns.unflatten(0, (len(units), size))])
    return (own * torch.linalg.solve(blocks, own)).sum(dim=(1, 2))


def _eliminate(weight: Tensor, inverse: Tensor, columns: Tensor) -> Tensor:
    """Take columns out of both, in place, the others refitted; gives the error that this adds."""
    own, block = weight[:, columns], inverse[columns][:, columns]
    across = torch.linalg.solve(block, inverse[columns])
    lost = (own.T * torch.linalg.solve(block, own.T)).sum()
    weight.addmm_(own, across, alpha=-1)
    inverse.addmm_(inverse[:, columns], across, alpha=-1)
    return lost
