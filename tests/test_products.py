"""Products as precise as what they are made of."""

from types import SimpleNamespace

import pytest
import torch

from optimum_mllm_prune.products import as_precise_as


SETTINGS = torch.backends.cuda.matmul


def numbers(dtype, is_cuda=True):
    return SimpleNamespace(dtype=dtype, is_cuda=is_cuda)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_on_a_gpu_are_multiplied_in_tf32_and_nothing_after_them(dtype):
    before = SETTINGS.fp32_precision
    assert before != "tf32"
    with pytest.raises(ZeroDivisionError), as_precise_as(numbers(dtype)):
        assert SETTINGS.fp32_precision == "tf32"
        raise ZeroDivisionError
    assert SETTINGS.fp32_precision == before


@pytest.mark.parametrize("other", [numbers(torch.float32), numbers(torch.bfloat16, is_cuda=False)])
def test_everything_else_stays_as_it_is(other):
    before = SETTINGS.fp32_precision
    with as_precise_as(other):
        assert SETTINGS.fp32_precision == before


def test_torch_before_2_9_has_another_name_for_it(monkeypatch):
    older = SimpleNamespace(allow_tf32=False)
    monkeypatch.setattr(torch.backends.cuda, "matmul", older)
    with as_precise_as(numbers(torch.bfloat16)):
        assert older.allow_tf32 is True
    assert older.allow_tf32 is False


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_no_digit_of_16_bits_is_lost(dtype):
    random = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(4096, 256, generator=random, device="cuda").to(dtype)
    with as_precise_as(x):
        found = x.float().T @ x.float()
    exact = x.double().T @ x.double()
    size = x.double().norm(dim=0)
    assert ((found - exact).abs() / torch.outer(size, size)).max() < 1e-5
