"""Fluctuation: what is constant counts nothing, however far from zero it is."""

import torch
from families import FAMILIES
from importance.naive import batch_of, calibrated, subject_of


def test_a_constant_input_does_not_fluctuate():
    model = FAMILIES["llava_llama_biased"].build()
    batch, subject = batch_of("llava_llama_biased", model.config), subject_of(model)
    layer = subject.layers[1]
    with torch.no_grad():
        layer.self_attn.v_proj.weight[:8] = 0
        layer.self_attn.v_proj.bias[:8] = 1000.0
    scores = calibrated(subject, "width", "fluctuation", [batch])["heads"]
    assert scores[1, 0] < 1e-6 * scores[1, 1]
    assert calibrated(subject, "width", "wanda", [batch])["heads"][1].argmax() == 0
