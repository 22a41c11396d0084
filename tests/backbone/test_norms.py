"""What kind of norm a module is, found from what it gives."""

import pytest
import torch
from torch import nn
from transformers.models.cohere2.modeling_cohere2 import Cohere2LayerNorm
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from optimum_mllm_prune.backbone import kind_of_norm, scale_gain
from optimum_mllm_prune.backbone.norms import NormKind


class Scale(nn.Module):
    """Multiplies each dimension, and norms nothing."""

    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, states):
        return states * self.weight


NORMS = [
    (LlamaRMSNorm, NormKind(0, False)),
    (Gemma3RMSNorm, NormKind(1, False)),
    (Cohere2LayerNorm, NormKind(0, True)),
    (nn.LayerNorm, NormKind(0, True)),
]


def filled(made):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator))
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [8, 4096])
@pytest.mark.parametrize(("make", "kind"), NORMS)
def test_kinds(make, kind, size, dtype):
    assert kind_of_norm(filled(make(size)).to(dtype)) == kind


def test_what_norms_nothing():
    assert kind_of_norm(Scale(8)) is None
    assert kind_of_norm(nn.SiLU()) is None


@pytest.mark.parametrize("make", [make for make, _ in NORMS])
def test_the_gain_is_scaled_and_the_bias_stays(make):
    norm, row = filled(make(16)), torch.linspace(-3, 5, 32).view(2, 16)
    bias = getattr(norm, "bias", None)
    bias = 0 if bias is None else bias.detach()
    with torch.no_grad():
        before = norm(row)
        scale_gain(norm, 1.25)
        torch.testing.assert_close(norm(row), 1.25 * (before - bias) + bias)
