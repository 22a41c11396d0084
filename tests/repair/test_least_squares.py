"""Ridge least squares from moments, against dense float64 algebra."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optimum_mllm_prune.repair.least_squares import RIDGES, Moments, best_ridge, ridge_solution


def data(tokens=200, inputs=6, outputs=4, seed=0, noise=0.1):
    random = torch.Generator().manual_seed(seed)
    x, true = torch.randn(tokens, inputs, generator=random), torch.randn(outputs, inputs, generator=random)
    return x, x @ true.T + noise * torch.randn(tokens, outputs, generator=random), true


def moments(x, y, parts=3):
    made = Moments.zeros(x.shape[1], y.shape[1], x.device)
    for some_x, some_y in zip(x.chunk(parts), y.chunk(parts), strict=True):
        made.add(some_x, some_y)
    return made


def start_of(y, x):
    return torch.zeros(y.shape[1], x.shape[1], dtype=torch.float64)


def test_moments_are_sums_of_products():
    x, y, _ = data()
    made = moments(x, y)
    assert torch.allclose(made.gram, x.double().T @ x.double(), rtol=1e-5)
    assert torch.allclose(made.cross, x.double().T @ y.double(), rtol=1e-5, atol=1e-4)
    assert made.square == pytest.approx(y.double().square().sum().item(), rel=1e-6)
    assert made.tokens == 200
    both = moments(x[:80], y[:80]) + moments(x[80:], y[80:])
    assert torch.allclose(both.gram, made.gram) and both.tokens == 200


def test_a_token_of_weight_two_counts_as_two_tokens():
    x, y, _ = data()
    weights = torch.arange(len(x)) % 3
    weighted = Moments.zeros(x.shape[1], y.shape[1], x.device)
    for part in range(4):
        weighted.add(x[part::4], y[part::4], weights[part::4])
    repeated = moments(x.repeat_interleave(weights, dim=0), y.repeat_interleave(weights, dim=0))
    assert torch.allclose(weighted.gram, repeated.gram, rtol=1e-5, atol=1e-4)
    assert torch.allclose(weighted.cross, repeated.cross, rtol=1e-5, atol=1e-4)
    assert weighted.square == pytest.approx(repeated.square, rel=1e-6)
    assert weighted.tokens == 200
    alike = Moments.zeros(x.shape[1], y.shape[1], x.device)
    alike.add(x, y, torch.full((len(x),), 0.25))
    assert torch.allclose(4 * alike.gram, moments(x, y).gram, rtol=1e-5, atol=1e-4)


@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 10))
def test_the_error_is_that_of_the_residuals(seed, scale):
    x, y, true = data(seed=seed)
    weight = scale * true.double()
    naive = (x.double() @ weight.T - y.double()).square().sum() / y.double().square().sum()
    assert moments(x, y).error(weight) == pytest.approx(naive.item(), rel=1e-3, abs=1e-5)


def test_hardly_any_ridge_is_plain_least_squares():
    x, y, _ = data()
    naive = torch.linalg.lstsq(x.double(), y.double()).solution.T
    assert torch.allclose(ridge_solution(moments(x, y), start_of(y, x), 1e-9), naive, atol=1e-4)


@given(seed=st.integers(0, 1000), ridge=st.floats(1e-4, 10))
def test_the_ridge_pulls_to_the_start(seed, ridge):
    x, y, true = data(seed=seed)
    start = true.double() + 1
    strength = ridge * (x.double().T @ x.double()).trace() / x.shape[1]
    stacked_x = torch.cat([x.double(), strength.sqrt() * torch.eye(x.shape[1], dtype=torch.float64)])
    stacked_y = torch.cat([y.double(), strength.sqrt() * start.T])
    naive = torch.linalg.lstsq(stacked_x, stacked_y).solution.T
    assert torch.allclose(ridge_solution(moments(x, y), start, ridge), naive, atol=1e-4)


def test_a_strong_pull_changes_nothing():
    x, y, true = data()
    start = true.double() + 1
    assert torch.allclose(ridge_solution(moments(x, y), start, 1e9), start, atol=1e-5)


def test_fewer_tokens_than_inputs():
    x, y, _ = data(tokens=3)
    weight = ridge_solution(moments(x, y), start_of(y, x), 1e-6)
    assert torch.allclose(x.double() @ weight.T, y.double(), atol=1e-2)


def test_no_inputs_at_all_are_no_solution():
    x, y = torch.zeros(5, 3), torch.ones(5, 2)
    assert ridge_solution(moments(x, y), start_of(y, x), 1e-3) is None


def test_a_map_that_is_right_stays_as_it_is():
    x, y, true = data(noise=0.0)
    fit, held_out = moments(x[:100], y[:100]), moments(x[100:], y[100:])
    right = best_ridge(fit, held_out, true.double())
    assert right is None or torch.allclose(ridge_solution(fit, true.double(), right), true.double(), atol=1e-3)
    wrong = best_ridge(fit, held_out, true.double() + 1)
    assert wrong <= 1e-3
    assert held_out.error(ridge_solution(fit, true.double() + 1, wrong)) < 1e-4


def test_nothing_held_out_decides_nothing():
    x, y, true = data()
    assert best_ridge(moments(x, y), moments(x[:0], y[:0], parts=1), true.double() + 1) is None


def test_the_ridge_is_chosen_by_rows_that_were_not_fitted():
    """Few noisy tokens: a strong pull to a good start wins; many: a weak one."""
    x, y, true = data(tokens=2000, inputs=20, noise=3.0)
    start, held_out = true.double() * 1.05, moments(x[1000:], y[1000:])
    assert best_ridge(moments(x[:25], y[:25]), held_out, start) in (1.0, None)
    assert best_ridge(moments(x[:1000], y[:1000]), held_out, true.double() * 3) <= 1e-2


@given(seed=st.integers(0, 1000), tokens=st.integers(10, 200), noise=st.floats(0.05, 3))
def test_downhill_finds_the_best_of_all(seed, tokens, noise):
    x, y, true = data(tokens=400, inputs=8, seed=seed, noise=noise)
    fit, held_out, start = moments(x[:tokens], y[:tokens]), moments(x[200:], y[200:]), 1.5 * true.double()
    errors = {ridge: held_out.error(ridge_solution(fit, start, ridge)) for ridge in RIDGES}
    found = best_ridge(fit, held_out, start)
    least = min(errors.values())
    assert least >= held_out.error(start) if found is None else errors[found] <= 1.001 * least


def test_what_fp32_cannot_factor_is_factored_in_fp64():
    x, y, _ = data(inputs=6)
    x[:, 5] = x[:, 4] * (1 + 1e-7)
    x *= torch.tensor([1e3, 1, 1, 1, 1, 1])
    found = ridge_solution(moments(x, y), start_of(y, x), 1e-12)
    assert found is not None and found.isfinite().all()
