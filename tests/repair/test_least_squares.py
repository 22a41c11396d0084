"""Ridge least squares from moments, against dense float64 algebra."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optimum_mllm_prune.repair.least_squares import RIDGES, Moments, best_fit, ridge_solution


def data(tokens=200, inputs=6, outputs=4, seed=0, noise=0.1):
    random = torch.Generator().manual_seed(seed)
    x, true = torch.randn(tokens, inputs, generator=random), torch.randn(outputs, inputs, generator=random)
    return x, x @ true.T + noise * torch.randn(tokens, outputs, generator=random), true


def moments(x, y, start=None, parts=3):
    made = Moments.of(torch.zeros(y.shape[1], x.shape[1]) if start is None else start)
    for some_x, some_y in zip(x.chunk(parts), y.chunk(parts), strict=True):
        made.add(some_x, some_y)
    return made


def solved(x, y, start, ridge):
    """The map that comes of a start, in fp64."""
    return start.double() + ridge_solution(moments(x, y, start), ridge).double()


def nothing(y, x):
    return torch.zeros(y.shape[1], x.shape[1])


def test_moments_are_sums_of_products():
    x, y, true = data()
    start = 0.5 * true
    made = moments(x, y, start)
    left = y.double() - x.double() @ start.double().T
    assert torch.allclose(made.gram, x.double().T @ x.double(), rtol=1e-5)
    assert torch.allclose(made.missing, x.double().T @ left, rtol=1e-5, atol=1e-4)
    assert made.left == pytest.approx(left.square().sum().item(), rel=1e-6)
    assert made.square == pytest.approx(y.double().square().sum().item(), rel=1e-6)
    assert made.tokens == 200


def test_a_token_of_weight_two_counts_as_two_tokens():
    x, y, true = data()
    weights = torch.arange(len(x)) % 3
    weighted = Moments.of(true + 1)
    for part in range(4):
        weighted.add(x[part::4], y[part::4], weights[part::4])
    repeated = moments(x.repeat_interleave(weights, dim=0), y.repeat_interleave(weights, dim=0), true + 1)
    assert torch.allclose(weighted.gram, repeated.gram, rtol=1e-5, atol=1e-4)
    assert torch.allclose(weighted.missing, repeated.missing, rtol=1e-5, atol=1e-4)
    assert weighted.square == pytest.approx(repeated.square, rel=1e-6)
    assert weighted.left == pytest.approx(repeated.left, rel=1e-6)
    assert weighted.tokens == 200
    alike = Moments.of(nothing(y, x))
    alike.add(x, y, torch.full((len(x),), 0.25))
    assert torch.allclose(4 * alike.gram, moments(x, y).gram, rtol=1e-5, atol=1e-4)


@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 10))
def test_the_error_is_that_of_the_residuals(seed, scale):
    x, y, true = data(seed=seed)
    start, weight = true + 1, scale * true.double()
    made = moments(x, y, start)
    for change, now in ((None, start.double()), (weight - start, weight), ((weight - start).float(), weight)):
        naive = (x.double() @ now.T - y.double()).square().sum() / y.double().square().sum()
        assert made.error(change) == pytest.approx(naive.item(), rel=1e-3, abs=1e-5)


def test_hardly_any_ridge_is_plain_least_squares():
    x, y, _ = data()
    naive = torch.linalg.lstsq(x.double(), y.double()).solution.T
    assert torch.allclose(solved(x, y, nothing(y, x), 1e-9), naive, atol=1e-4)


@given(seed=st.integers(0, 1000), ridge=st.floats(1e-4, 10))
def test_the_ridge_pulls_to_the_start(seed, ridge):
    x, y, true = data(seed=seed)
    start = true + 1
    strength = ridge * (x.double().T @ x.double()).trace() / x.shape[1]
    stacked_x = torch.cat([x.double(), strength.sqrt() * torch.eye(x.shape[1], dtype=torch.float64)])
    stacked_y = torch.cat([y.double(), strength.sqrt() * start.double().T])
    naive = torch.linalg.lstsq(stacked_x, stacked_y).solution.T
    assert torch.allclose(solved(x, y, start, ridge), naive, atol=1e-4)


def test_a_strong_pull_changes_nothing():
    x, y, true = data()
    change = ridge_solution(moments(x, y, true + 1), 1e9)
    assert torch.allclose(change, torch.zeros_like(change), atol=1e-5)


def test_fewer_tokens_than_inputs():
    x, y, _ = data(tokens=3)
    weight = solved(x, y, nothing(y, x), 1e-6)
    assert torch.allclose(x.double() @ weight.T, y.double(), atol=1e-2)


def test_no_inputs_at_all_are_no_solution():
    x, y = torch.zeros(5, 3), torch.ones(5, 2)
    assert ridge_solution(moments(x, y), 1e-3) is None


def best_of(fit, held_out, start):
    """Of rows to fit to and rows that decide, (x, y) each."""
    return best_fit(moments(*fit, start), moments(*held_out, start))


def test_a_map_that_is_right_stays_as_it_is():
    x, y, true = data(noise=0.0)
    fit, held_out = (x[:100], y[:100]), (x[100:], y[100:])
    right = best_of(fit, held_out, true)
    assert right is None or right.change.abs().max() < 1e-3
    wrong = best_of(fit, held_out, true + 1)
    assert wrong.ridge <= 1e-3
    assert wrong.error < 1e-4
    assert wrong.error == moments(*held_out, true + 1).error(wrong.change)


def test_nothing_held_out_decides_nothing():
    x, y, true = data()
    assert best_fit(moments(x, y, true + 1), Moments.of(true + 1)) is None


def test_the_ridge_is_chosen_by_rows_that_were_not_fitted():
    """Few noisy tokens: a strong pull to a good start wins; many: a weak one."""
    x, y, true = data(tokens=2000, inputs=20, noise=3.0)
    held_out = x[1000:], y[1000:]
    few = best_of((x[:25], y[:25]), held_out, true * 1.05)
    assert few is None or few.ridge == 1.0
    assert best_of((x[:1000], y[:1000]), held_out, true * 3).ridge <= 1e-2


@given(seed=st.integers(0, 1000), tokens=st.integers(10, 200), noise=st.floats(0.05, 3))
def test_downhill_finds_the_best_of_all(seed, tokens, noise):
    x, y, true = data(tokens=400, inputs=8, seed=seed, noise=noise)
    start = 1.5 * true
    fit, held_out = moments(x[:tokens], y[:tokens], start), moments(x[200:], y[200:], start)
    errors = {ridge: held_out.error(ridge_solution(fit, ridge)) for ridge in RIDGES}
    found = best_fit(fit, held_out)
    least = min(errors.values())
    assert least >= held_out.error() if found is None else errors[found.ridge] == found.error <= 1.001 * least


def test_what_fp32_cannot_factor_is_factored_in_fp64():
    x, y, _ = data(inputs=6)
    x[:, 5] = x[:, 4] * (1 + 1e-7)
    x *= torch.tensor([1e3, 1, 1, 1, 1, 1])
    found = ridge_solution(moments(x, y), 1e-12)
    assert found is not None and found.isfinite().all()
