"""Likelihoods of the right answers, against a naive float64 version, one row at a time."""

import pytest
import torch
from checkpoint import tiny_llava
from PIL import Image

from optimum_mllm_prune.calibration.batches import make_batch
from optimum_mllm_prune.calibration.row_forms import normalize_row
from optimum_mllm_prune.evaluation.likelihood import answer_likelihoods


@pytest.fixture(scope="module")
def model():
    return tiny_llava.model().float()


@pytest.fixture(scope="module")
def processor():
    return tiny_llava.processor()


def rows():
    image = Image.linear_gradient("L").resize((32, 32)).convert("RGB")
    pairs = [("What is it?", "noise"), ("Describe the image.", "It is colourful noise."), ("Is it red?", "no")]
    with_images = [{"image": image, "question": question, "answer": answer} for question, answer in pairs]
    text = {"messages": [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Good day to you."}]}
    return [with_images[0], text, *with_images[1:]]


def naive(model, processor, row):
    batch = make_batch(processor, [normalize_row(row)])
    with torch.no_grad():
        logits = model(**batch.inputs).logits[0].double()
    total, tokens = 0.0, 0
    for position in range(1, batch.labels.shape[1]):
        label = batch.labels[0, position].item()
        if label != -100:
            total -= torch.log_softmax(logits[position - 1], dim=-1)[label].item()
            tokens += 1
    return total, tokens


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_every_row_in_its_place(model, processor, batch_size):
    found = answer_likelihoods(model, processor, rows(), batch_size)
    for row, own in zip(rows(), found, strict=True):
        nats, tokens = naive(model, processor, row)
        assert own.tokens == tokens > 0
        assert own.nats == pytest.approx(nats, rel=1e-4)
