"""Every loss against a naive version in float64, at its limits, and with nothing to look at."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optimum_mllm_prune.recovery.losses import (
    bucketed_log_probabilities,
    cross_entropy_sum,
    distance_sum,
    divergence_sum,
    log_probabilities,
)


KINDS = ["forward_kl", "reverse_kl", "jsd"]
NOTHING = float("-inf")

shapes = st.tuples(st.integers(1, 5), st.integers(2, 9))
seeds = st.integers(0, 2**31)
temperatures = st.floats(0.3, 8)
betas = st.floats(0.05, 0.95)


def noise(shape, seed, scale=3.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def naive_probabilities(logits, temperature):
    powers = [[math.exp(value / temperature) for value in row] for row in logits.double().tolist()]
    return [[power / sum(row) for power in row] for row in powers]


def naive_kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def naive_divergence(student, teacher, kind, beta):
    total = 0.0
    for q, p in zip(student, teacher, strict=True):
        mixture = [beta * a + (1 - beta) * b for a, b in zip(p, q, strict=True)]
        total += {
            "forward_kl": lambda p=p, q=q: naive_kl(p, q),
            "reverse_kl": lambda p=p, q=q: naive_kl(q, p),
            "jsd": lambda p=p, q=q, m=mixture: beta * naive_kl(p, m) + (1 - beta) * naive_kl(q, m),
        }[kind]()
    return total


@settings(max_examples=30, deadline=None)
@given(shapes, seeds)
def test_cross_entropy(shape, seed):
    logits = noise(shape, seed)
    labels = torch.randint(0, shape[1], shape[:1], generator=torch.Generator().manual_seed(seed))
    rows = naive_probabilities(logits, 1)
    expected = -sum(math.log(row[label]) for row, label in zip(rows, labels.tolist(), strict=True))
    assert cross_entropy_sum(logits, labels).item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_cross_entropy_leaves_out_what_is_no_answer():
    logits = noise((3, 7), 0)
    labels = torch.tensor([4, -100, 2])
    assert cross_entropy_sum(logits, labels) == cross_entropy_sum(logits[[0, 2]], labels[[0, 2]])


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None)
@given(shapes, seeds, temperatures, betas)
def test_divergence(kind, shape, seed, temperature, beta):
    student, teacher = noise(shape, seed), noise(shape, seed + 1)
    found = divergence_sum(*(log_probabilities(x, temperature) for x in (student, teacher)), kind, beta)
    expected = naive_divergence(*(naive_probabilities(x, temperature) for x in (student, teacher)), kind, beta)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradients_of_a_divergence_are_its_differences(kind):
    student, teacher = (noise((3, 5), seed).double().requires_grad_() for seed in (0, 1))

    def divergence(student, teacher):
        return divergence_sum(student.log_softmax(-1), teacher.log_softmax(-1), kind, 0.3)

    assert torch.autograd.gradcheck(divergence, (student, teacher))


@pytest.mark.parametrize("kind", KINDS)
def test_equal_distributions_do_not_diverge(kind):
    same = log_probabilities(noise((4, 6), 0), 1)
    assert divergence_sum(same, same, kind, 0.4).abs() < 1e-6


@pytest.mark.parametrize(("beta", "limit"), [(1e-4, "forward_kl"), (1 - 1e-4, "reverse_kl")])
def test_the_jsd_tends_to_both_kls(beta, limit):
    """JSD / beta tends to KL(teacher || student) for small beta, and JSD / (1 - beta) to the reverse for large."""
    student, teacher = (noise((4, 6), seed, 1.0).double().log_softmax(-1) for seed in (0, 1))
    found = divergence_sum(student, teacher, "jsd", beta) / min(beta, 1 - beta)
    torch.testing.assert_close(found, divergence_sum(student, teacher, limit), rtol=1e-2, atol=0)


def test_the_jsd_is_bounded_and_symmetric_in_the_middle():
    student, teacher = (log_probabilities(noise((1, 6), seed, 30.0), 1) for seed in (0, 1))
    found = divergence_sum(student, teacher, "jsd")
    assert 0 < found <= math.log(2) + 1e-6
    torch.testing.assert_close(found, divergence_sum(teacher, student, "jsd"))


def test_a_high_temperature_times_its_square_compares_logits():
    """tau^2 KL tends to half the variance of the differences of the logits (Hinton et al., section 2.1)."""
    student, teacher = noise((5, 8), 0).double(), noise((5, 8), 1).double()
    tau = 1000.0
    found = tau**2 * divergence_sum((student / tau).log_softmax(-1), (teacher / tau).log_softmax(-1), "forward_kl")
    expected = (student - teacher).var(dim=-1, unbiased=False).sum() / 2
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_of_half_precision_are_summed_in_fp32(dtype):
    logits = noise((4, 6), 0).to(dtype)
    assert torch.equal(log_probabilities(logits, 2.0), log_probabilities(logits.float(), 2.0))
    labels = torch.tensor([0, 1, 2, 3])
    assert torch.equal(cross_entropy_sum(logits, labels), cross_entropy_sum(logits.float(), labels))
    assert distance_sum(logits, logits + 1, "mse").dtype == torch.float32


@settings(max_examples=30, deadline=None)
@given(shapes, seeds, temperatures, st.data())
def test_buckets_are_the_named_tokens_and_the_sum_of_the_others(shape, seed, temperature, data):
    tokens, vocabulary = shape
    k = data.draw(st.integers(1, vocabulary - 1))
    logits = noise(shape, seed)
    order = noise(shape, seed + 1).argsort(dim=-1)[:, :k]
    found = bucketed_log_probabilities(logits, order, temperature)
    expected = []
    for row, chosen in zip(naive_probabilities(logits, temperature), order.tolist(), strict=True):
        rest = sum(p for token, p in enumerate(row) if token not in chosen)
        expected.append([math.log(row[token]) for token in chosen] + [math.log(rest)])
    assert found.shape == (tokens, k + 1) and found.dtype == torch.float32
    torch.testing.assert_close(found.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_buckets_of_the_whole_vocabulary_are_the_whole_divergence(kind):
    student, teacher = noise((4, 6), 0).requires_grad_(), noise((4, 6), 1)
    order = noise((4, 6), 2).argsort(dim=-1)
    found, expected = (
        divergence_sum(of(student), of(teacher), kind, 0.3)
        for of in (lambda x: bucketed_log_probabilities(x, order, 2.0), lambda x: log_probabilities(x, 2.0))
    )
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, student)[0] for value in (found, expected)))
    assert bucketed_log_probabilities(student, order, 2.0)[:, -1].isneginf().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 3])
def test_fewer_buckets_see_less(kind, k):
    student, teacher = noise((4, 6), 0), noise((4, 6), 1)
    order = teacher.argsort(dim=-1, descending=True)[:, :k]
    few = divergence_sum(
        bucketed_log_probabilities(student, order, 2.0), bucketed_log_probabilities(teacher, order, 2.0), kind
    )
    assert 0 < few < divergence_sum(log_probabilities(student, 2.0), log_probabilities(teacher, 2.0), kind)


def test_the_gradient_through_buckets_is_their_difference():
    logits = noise((3, 5), 0).double().requires_grad_()
    order = torch.tensor([[0, 3], [4, 1], [2, 0]])
    teacher = noise((3, 3), 1).double().log_softmax(-1)
    in_fp32 = torch.autograd.grad(
        divergence_sum(bucketed_log_probabilities(logits, order, 2.0), teacher.float(), "forward_kl"), logits
    )[0]

    def naive(logits):
        p = (logits / 2).softmax(-1)
        rest = 1 - p.gather(-1, order).sum(-1, keepdim=True)
        q = torch.cat([p.gather(-1, order), rest], dim=-1)
        return (teacher.exp() * (teacher - q.log())).sum()

    torch.testing.assert_close(in_fp32, torch.autograd.grad(naive(logits), logits)[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_impossible_in_both_adds_nothing(kind):
    student = torch.tensor([[0.25, 0.75, 0.0]]).log().requires_grad_()
    teacher = torch.tensor([[0.5, 0.5, 0.0]]).log()
    found = divergence_sum(student, teacher, kind, 0.3)
    assert found.item() == pytest.approx(naive_divergence([[0.25, 0.75]], [[0.5, 0.5]], kind, 0.3), rel=1e-5)
    gradient = torch.autograd.grad(found, student)[0]
    assert gradient.isfinite().all() and gradient[0, 2] == 0


def test_a_token_that_only_one_of_them_thinks_possible():
    full, lacking = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.0, NOTHING]])
    assert divergence_sum(full, lacking, "forward_kl").item() == pytest.approx(math.log(2))
    assert divergence_sum(lacking, full, "forward_kl") == math.inf
    assert divergence_sum(lacking, full, "jsd").isfinite()


@pytest.mark.parametrize("kind", ["mse", "cosine"])
@settings(max_examples=30, deadline=None)
@given(shapes, seeds)
def test_distance(kind, shape, seed):
    student, teacher = noise(shape, seed), noise(shape, seed + 1)
    expected = 0.0
    for one, other in zip(student.double().tolist(), teacher.double().tolist(), strict=True):
        if kind == "mse":
            expected += sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) / len(one)
        else:
            dot = sum(a * b for a, b in zip(one, other, strict=True))
            expected += 1 - dot / math.sqrt(sum(a * a for a in one) * sum(b * b for b in other))
    assert distance_sum(student, teacher, kind).item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


EMPTY = {
    "cross entropy": lambda x: cross_entropy_sum(x, torch.empty(0, dtype=torch.long)),
    "forward_kl": lambda x: divergence_sum(log_probabilities(x, 2.0), torch.empty(0, 5), "forward_kl"),
    "reverse_kl": lambda x: divergence_sum(log_probabilities(x, 2.0), torch.empty(0, 5), "reverse_kl"),
    "jsd": lambda x: divergence_sum(log_probabilities(x, 2.0), torch.empty(0, 5), "jsd"),
    "buckets": lambda x: bucketed_log_probabilities(x, torch.empty(0, 2, dtype=torch.long), 2.0).sum(),
    "mse": lambda x: distance_sum(x, torch.empty(0, 5), "mse"),
    "cosine": lambda x: distance_sum(x, torch.empty(0, 5), "cosine"),
}


@pytest.mark.parametrize("name", EMPTY)
def test_no_token_costs_nothing(name):
    logits = torch.empty(0, 5, requires_grad=True)
    loss = EMPTY[name](logits)
    assert loss == 0
    assert torch.autograd.grad(loss, logits)[0].shape == (0, 5)


def test_only_ignored_labels_cost_nothing():
    logits = noise((3, 5), 0).requires_grad_()
    loss = cross_entropy_sum(logits, torch.full((3,), -100))
    assert loss == 0
    assert torch.equal(torch.autograd.grad(loss, logits)[0], torch.zeros(3, 5))
