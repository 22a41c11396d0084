"""The optimal brain surgeon's order and errors, against refitting from scratch for every candidate."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optimum_mllm_prune.importance import surgeon
from optimum_mllm_prune.importance.surgeon import removal_errors


def made(seed, tokens, columns, outputs=5):
    random = torch.Generator().manual_seed(seed)
    mixed = torch.randn(columns, columns, generator=random, dtype=torch.float64) / columns**0.5
    x = torch.randn(tokens, columns, generator=random, dtype=torch.float64) @ (mixed + torch.eye(columns))
    return x, torch.randn(outputs, columns, generator=random, dtype=torch.float64)


def refitted_error(x, weight, left, strength):
    """min over V with columns `left` of sum |V x - W x|^2 + r |V - W|^2, as a share of the same for V = 0."""
    stacked = torch.cat([x, strength**0.5 * torch.eye(x.shape[1], dtype=x.dtype)])
    wanted = stacked @ weight.T
    if left:
        fitted = stacked[:, left] @ torch.linalg.lstsq(stacked[:, left], wanted).solution
    else:
        fitted = torch.zeros_like(wanted)
    return ((fitted - wanted).square().sum() / wanted.square().sum()).item()


def naive(x, weight, units, damping=surgeon.DAMPING):
    """Greedy: whichever unit leaves the least error once all others are refitted goes next."""
    size, strength = x.shape[1] // units, damping * x.square().sum(dim=0).mean().item()
    left, errors = list(range(units)), torch.empty(units, dtype=torch.float64)
    while left:
        found = {}
        for unit in left:
            columns = [c for other in left if other != unit for c in range(other * size, (other + 1) * size)]
            found[unit] = refitted_error(x, weight, columns, strength)
        gone = min(found, key=found.get)
        errors[gone] = found[gone]
        left.remove(gone)
    return errors


@pytest.mark.parametrize(("columns", "units"), [(8, 8), (12, 4), (12, 3)])
@pytest.mark.parametrize("tokens", [5, 60])
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_greedy_with_refits_from_scratch(columns, units, tokens, seed):
    x, weight = made(seed, tokens, columns)
    found = removal_errors(x.T @ x, weight, units)
    assert torch.allclose(found, naive(x, weight, units), atol=1e-8)


@pytest.mark.parametrize("panel", [1, 3, 5, 256])
def test_panels_change_nothing(panel, monkeypatch):
    x, weight = made(0, 60, 12)
    monkeypatch.setattr(surgeon, "PANEL", panel)
    assert torch.allclose(removal_errors(x.T @ x, weight, 12), naive(x, weight, 12), atol=1e-8)


def test_a_step_need_not_be_told_how_many_have_gone():
    x, weight = made(0, 60, 12)
    inverse, products = (x.T @ x).inverse(), weight.T @ weight
    told, untold = (surgeon._Panel(inverse, products, 5) for _ in range(2))
    for number in range(5):
        told.step(slice(number))
        untold.step(slice(None))
    assert told.gone.tolist() == untold.gone.tolist()
    assert torch.allclose(told.tops / told.pivots, untold.tops / untold.pivots)
    assert torch.allclose(told.a, untold.a) and torch.allclose(told.u, untold.u)


def test_a_copy_of_another_channel_costs_nothing_once():
    x, weight = made(1, 200, 6)
    x[:, 4] = x[:, 2]
    found = removal_errors(x.T @ x, weight, 6, damping=1e-9)
    assert sorted(found.tolist())[0] < 1e-6 < 1e-3 < sorted(found.tolist())[1]
    assert found.argmin() in (2, 4)


def test_inputs_that_are_always_zero():
    assert removal_errors(torch.zeros(4, 4, dtype=torch.float64), torch.ones(3, 4), 4).isfinite().all()
