"""What is kept of a distribution, against float64 over the k stored tokens and one bucket of the rest."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optimum_mllm_prune.recovery import head as head_module
from optimum_mllm_prune.recovery.recipe import Recipe
from optimum_mllm_prune.recovery.teachers.guidance import StoredGuidance
from optimum_mllm_prune.recovery.teachers.top_logits import top_log_probabilities, top_logits


@st.composite
def cases(draw):
    """Logits of teacher and student (tokens, vocabulary), k, temperature, kind of divergence and beta."""
    tokens, vocabulary = draw(st.integers(1, 5)), draw(st.integers(2, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([0.1, 1.0, 8.0]))
    teacher, student = rng.normal(size=(2, tokens, vocabulary)) * scale
    kind = draw(st.sampled_from(["forward_kl", "reverse_kl", "jsd"]))
    temperature, beta = draw(st.sampled_from([0.5, 1.0, 2.0, 5.0])), draw(st.sampled_from([0.1, 0.5, 0.9]))
    return teacher, student, draw(st.integers(1, vocabulary)), temperature, kind, beta


def softmax(logits, temperature):
    powers = [math.exp((value - max(logits)) / temperature) for value in logits]
    return [power / sum(powers) for power in powers]


def buckets(probabilities, kept):
    rest = math.fsum(p for token, p in enumerate(probabilities) if token not in kept)
    return [probabilities[token] for token in kept] + ([rest] if len(kept) < len(probabilities) else [])


def kl(first, second):
    return math.fsum(p * math.log(p / q) for p, q in zip(first, second, strict=True) if p > 0)


def naive(teacher, student, k, temperature, kind, beta):
    total = 0.0
    for theirs, own in zip(teacher, student, strict=True):
        kept = sorted(range(len(theirs)), key=lambda token: -theirs[token])[:k]
        p, q = buckets(softmax(theirs, temperature), kept), buckets(softmax(own, temperature), kept)
        mixture = [beta * a + (1 - beta) * b for a, b in zip(p, q, strict=True)]
        jsd = beta * kl(p, mixture) + (1 - beta) * kl(q, mixture)
        total += {"forward_kl": kl(p, q), "reverse_kl": kl(q, p), "jsd": jsd}[kind]
    return total


@settings(deadline=None, max_examples=200)
@given(cases())
def test_divergence_of_what_is_stored_is_that_over_the_buckets(case):
    # The logits are exact in both formats, or the k largest could be others.
    teacher, student = (torch.tensor(logits, dtype=torch.float32) for logits in case[:2])
    _, _, k, temperature, kind, beta = case
    kept = top_logits(lambda states: states, teacher, teacher.shape[1], k, temperature)
    log_probs = top_log_probabilities(kept.values, kept.rest, temperature)
    guidance = StoredGuidance(kept.indices.long(), log_probs, None)
    recipe = Recipe({"logits": 1.0}, divergence=kind, temperature=temperature, beta=beta)
    every = slice(0, len(student))
    found = guidance.divergence(every, recipe)(student, every).item()
    expected = naive(teacher.double().tolist(), student.double().tolist(), k, temperature, kind, beta)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert log_probs.exp().sum(dim=-1).numpy() == pytest.approx(1, abs=1e-5)


def test_all_of_the_vocabulary_leaves_no_rest():
    logits = torch.randn(3, 7)
    kept = top_logits(lambda states: states, logits, 7, 7, 2.0)
    assert kept.rest.isneginf().all()
    back = torch.zeros(3, 7).scatter(-1, kept.indices.long(), kept.values)
    assert torch.equal(back, logits)


def test_number_formats_and_chunks(monkeypatch):
    states = torch.randn(11, 6).bfloat16()
    seen = []

    def head(chunk):
        seen.append(len(chunk))
        return chunk.float() * 3

    whole = top_logits(head, states, 6, 2, 1.0)
    monkeypatch.setattr(head_module, "CHUNK_ELEMENTS", 4 * 6)
    chunked = top_logits(head, states, 6, 2, 1.0)
    assert seen == [11, 4, 4, 3]
    assert (whole.values.dtype, whole.indices.dtype, whole.rest.dtype) == (torch.bfloat16, torch.int32, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(whole, chunked, strict=True))
