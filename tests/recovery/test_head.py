"""The head in chunks is the head in one piece, and the way from its output to the logits is found."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from optimum_mllm_prune.recovery import head as head_module
from optimum_mllm_prune.recovery.head import Head, head_losses, logit_transform, rows_a_chunk


HIDDEN, VOCABULARY = 6, 11


def same(values):
    return values


def capped(values):
    return 3.0 * torch.tanh(values / 3.0)


def states_of(tokens, dtype=torch.float64, requires_grad=True):
    generator = torch.Generator().manual_seed(tokens)
    return torch.randn(tokens, HIDDEN, generator=generator, dtype=dtype).requires_grad_(requires_grad)


def linear(bias=False, dtype=torch.float64):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Linear(HIDDEN, VOCABULARY, bias=bias, dtype=dtype)


def two_terms(tokens):
    """Cross entropy with a label a token, and the squares weighted by a number a token."""
    labels, numbers = torch.arange(tokens) % VOCABULARY, torch.linspace(1, 2, tokens, dtype=torch.float64)

    def of_logits(logits, chosen=slice(None)):
        first = nn.functional.cross_entropy(logits.double(), labels[chosen], reduction="sum")
        return torch.stack([first, (logits.double().square().mean(-1) * numbers[chosen]).sum()])

    def of_chunk(chunk):
        places = torch.arange(tokens)[chunk]
        return lambda logits, block: of_logits(logits, places[block])

    return of_logits, of_chunk


def both_ways(module, transform, states, rows, weights=(0.3, 2.0)):
    """Loss, terms and gradients: in chunks, and at once by autograd."""
    weights = torch.tensor(weights, dtype=torch.float64)
    at_once, in_chunks = two_terms(len(states))
    terms = at_once(transform(module(states)))
    asked = [tensor for tensor in (states, *module.parameters()) if tensor.requires_grad]
    expected = ((weights * terms).sum(), terms.detach())
    loss, found = head_losses(Head(module, transform), states, in_chunks, weights, rows)
    # A factor, as accumulation and loss scaling apply one.
    return (
        (loss, found, torch.autograd.grad(3 * loss, asked)),
        (*expected, torch.autograd.grad(3 * expected[0], asked)),
    )


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("transform", [same, capped])
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 10), st.integers(1, 40))
def test_chunks_and_blocks_change_nothing(bias, transform, tokens, rows, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(head_module.BLOCK_ELEMENTS, "cpu", block)
        found, expected = both_ways(linear(bias), transform, states_of(tokens), rows)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("trained", ["states", "weight", "bias"])
def test_only_what_requires_a_gradient_gets_one(trained):
    module, states = linear(bias=True), states_of(5, requires_grad=trained == "states")
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name == trained)
    found, expected = both_ways(module, same, states, rows=2)
    assert len(found[2]) == 1
    torch.testing.assert_close(found, expected)


def test_a_head_that_is_no_linear_map():
    module = nn.Sequential(linear(), nn.Tanh(), nn.Linear(VOCABULARY, VOCABULARY, dtype=torch.float64))
    torch.testing.assert_close(*both_ways(module, same, states_of(5), rows=2))


def test_a_tied_head_adds_to_the_embeddings_gradient():
    module, states = linear(), None
    embedding = nn.Embedding(VOCABULARY, HIDDEN, dtype=torch.float64)
    embedding.weight = module.weight
    ids = torch.tensor([1, 4, 4, 9])
    at_once, in_chunks = two_terms(len(ids))
    weights = torch.tensor([0.3, 2.0], dtype=torch.float64)
    gradients = []
    for chunked in (True, False):
        module.weight.grad = None
        states = embedding(ids).tanh()
        if chunked:
            head_losses(Head(module, same), states, in_chunks, weights, rows=3)[0].backward()
        else:
            (weights * at_once(module(states))).sum().backward()
        gradients.append(module.weight.grad)
    torch.testing.assert_close(*gradients)


def test_gradients_of_several_batches_add_up():
    module, weights = linear(), torch.tensor([0.3, 2.0], dtype=torch.float64)
    _, in_chunks = two_terms(5)
    for _ in range(2):
        head_losses(Head(module, same), states_of(5), in_chunks, weights, rows=2)[0].backward()
    twice = module.weight.grad.clone()
    module.weight.grad = None
    head_losses(Head(module, same), states_of(5), in_chunks, weights, rows=2)[0].backward()
    torch.testing.assert_close(twice, 2 * module.weight.grad)


def test_no_tokens_cost_nothing():
    module, states = linear(bias=True), states_of(0)
    _, in_chunks = two_terms(0)
    loss, terms = head_losses(Head(module, same), states, in_chunks, torch.ones(2), rows=3)
    assert loss == 0 and terms.tolist() == [0, 0]
    loss.backward()
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in (states, *module.parameters()))


def test_without_gradients_none_is_taken(monkeypatch):
    module, states = linear(), states_of(5)
    at_once, in_chunks = two_terms(5)
    weights = torch.tensor([0.3, 2.0], dtype=torch.float64)
    monkeypatch.setattr(torch.autograd, "grad", lambda *_: pytest.fail("a gradient was taken"))
    with torch.no_grad():
        loss, terms = head_losses(Head(module, same), states, in_chunks, weights, rows=2)
        torch.testing.assert_close(terms, at_once(module(states)))
        frozen, _ = head_losses(Head(module.requires_grad_(False), same), states.detach(), in_chunks, weights, rows=2)
    assert not loss.requires_grad
    torch.testing.assert_close(frozen, loss)


def test_terms_are_not_differentiable():
    _, in_chunks = two_terms(3)
    loss, terms = head_losses(Head(linear(), same), states_of(3), in_chunks, torch.ones(2), rows=2)
    assert loss.requires_grad and not terms.requires_grad


def test_under_autocast_gradients_have_their_parameters_format():
    module, states = linear(dtype=torch.float32), states_of(7, torch.float32)
    at_once, in_chunks = two_terms(7)
    weights = torch.tensor([0.3, 2.0])
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = head_losses(Head(module, same), states, in_chunks, weights, rows=3)
        expected = (weights * at_once(module(states))).sum()
    found, wanted = (torch.autograd.grad(value, (states, module.weight)) for value in (loss, expected))
    assert all(gradient.dtype == torch.float32 for gradient in found)
    torch.testing.assert_close(loss, expected.to(loss.dtype), rtol=1e-5, atol=0)
    torch.testing.assert_close(found, wanted, rtol=2e-2, atol=2e-2)


def test_no_more_logits_are_made_than_those_of_a_chunk(monkeypatch):
    made, module = [], linear()
    own = module.forward
    monkeypatch.setattr(module, "forward", lambda states: made.append(len(states)) or own(states))
    _, in_chunks = two_terms(7)
    head_losses(Head(module, same), states_of(7), in_chunks, torch.ones(2), rows=3)
    assert made == [3, 3, 1]


def test_a_chunk_holds_at_least_one_token():
    assert rows_a_chunk(10**9) == 1
    assert rows_a_chunk(1024) * 1024 == head_module.CHUNK_ELEMENTS


WAYS = {
    "identity": lambda raw: raw,
    "scale": lambda raw: 0.0625 * raw,
    "large scale": lambda raw: 7.5 * raw,
    "soft cap": lambda raw: 30 * torch.tanh(raw / 30),
    "scale and soft cap": lambda raw: 30 * torch.tanh(0.25 * raw / 30),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", WAYS)
def test_the_way_from_head_to_logits_is_found(name, dtype):
    raw, other = (10 * torch.randn(tokens, 50, generator=torch.Generator().manual_seed(tokens)) for tokens in (1, 4))
    found = logit_transform(raw.to(dtype), WAYS[name](raw.to(dtype)), 30.0 if "cap" in name else None)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found(other), WAYS[name](other), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cap_that_the_model_does_not_apply_is_not_applied(dtype):
    raw = 10 * torch.randn(1, 50, generator=torch.Generator().manual_seed(0), dtype=dtype)
    assert torch.equal(logit_transform(raw, raw, 30.0)(raw), raw)


def test_an_identity_is_exact():
    raw = torch.randn(1, 50)
    assert torch.equal(logit_transform(raw, raw.clone(), None)(raw), raw)


@pytest.mark.parametrize("way", [lambda raw: raw.square(), lambda raw: raw + 5, lambda raw: 2 * torch.tanh(raw / 2)])
def test_an_unknown_way_is_refused(way):
    raw = 10 * torch.randn(1, 50, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="makes its logits from the head's output in a way that is not known"):
        logit_transform(raw, way(raw), None)
