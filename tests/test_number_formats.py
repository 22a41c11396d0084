"""The format that is computed in and the one that is saved in."""

from pathlib import Path

import pytest
import torch
from checkpoint import tiny_llava
from families import FAMILIES
from safetensors.torch import load_file
from transformers import AutoConfig

from optimum_mllm_prune import MLLMPruner, PruningConfig, number_formats, placement
from optimum_mllm_prune.number_formats import as_saved, rounded, saved_dtype, working_dtype


DIGITS = Path(__file__).parents[1] / "examples" / "digit_scenes" / "llava"


@pytest.fixture
def slow(monkeypatch):
    """A CPU without instructions for 16 bits."""
    monkeypatch.setattr(number_formats, "_is_slow", lambda dtype: dtype in (torch.bfloat16, torch.float16))


def config(dtype):
    made = AutoConfig.from_pretrained(DIGITS)
    made.dtype = dtype
    return made


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_slow_formats_are_computed_in_float32(slow, dtype):
    assert working_dtype(config(dtype), "cpu", None) == torch.float32
    assert working_dtype(config(torch.float32), "cpu", None) == "auto"
    assert working_dtype(config(dtype), None, {"": "cpu"}) == "auto"
    assert working_dtype(config(dtype), "cuda", None) == "auto"


def test_a_fast_format_stays(monkeypatch):
    monkeypatch.setattr(number_formats, "_is_slow", lambda dtype: False)
    assert working_dtype(config(torch.bfloat16), "cpu", None) == "auto"


def test_where_memory_is_short_it_stays(slow, monkeypatch):
    # 2,865,472 parameters of 4 bytes, and half of the memory for them.
    for free, expected in ((2 * 4 * 2_865_472, torch.float32), (2 * 4 * 2_865_472 - 1, "auto")):
        monkeypatch.setattr(number_formats, "get_max_memory", lambda free=free: {"cpu": free})
        assert working_dtype(config(torch.bfloat16), "cpu", None) == expected


def test_a_model_that_keeps_some_weights_in_float32_stays(slow, monkeypatch):
    monkeypatch.setattr("transformers.LlavaForConditionalGeneration._keep_in_fp32_modules", {"norm"})
    assert working_dtype(config(torch.float16), "cpu", None) == "auto"
    assert working_dtype(config(torch.bfloat16), "cpu", None) == torch.float32


def test_what_a_config_names():
    assert saved_dtype(config(torch.float16)) == saved_dtype(config("float16")) == torch.float16
    nothing = config(None)
    nothing.text_config.dtype = None
    assert saved_dtype(nothing) == torch.float32


def test_rounded_and_saved():
    model = FAMILIES["llava_llama_tied"].build(dtype=torch.float32)
    expected = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    assert rounded(model, None) is model
    rounded(model, torch.bfloat16)
    assert all(torch.equal(tensor, expected[name].float()) for name, tensor in model.state_dict().items())
    as_saved(model, torch.bfloat16)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert model.config.dtype == torch.bfloat16


def test_repaired_in_float32_and_saved_as_it_came(slow, tmp_path):
    """The fresh process finds the values that the model in memory had, although a repair had left finer ones."""
    made = MLLMPruner.from_pretrained(str(DIGITS), device="cpu")
    assert made.model.dtype == torch.float32
    model = made.prune(PruningConfig(ratio=0.3, importance="magnitude_l2", repair_samples=8), tiny_llava.rows())
    assert made.repair is not None
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = made.save_pretrained(tmp_path / "out")
    assert report.verification.max_abs_logit_difference == 0
    assert report.environment["dtype"] == "bfloat16"
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert report.size_bytes["after"] == sum(tensor.nbytes for tensor in stored.values())
    again = MLLMPruner.from_pretrained(str(tmp_path / "out"), device="cpu").model
    assert all(torch.equal(tensor, weights[name]) for name, tensor in again.state_dict().items())


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        # 11.5 MB in float32, 5.7 MB as saved, 2.6 and 1.3 MB where layers stay on disk; weights may take 80 %.
        (15_000_000, (torch.float32, None)),
        (8_000_000, ("auto", None)),
        (6_000_000, (torch.float32, "disk")),
        (2_000_000, ("auto", "disk")),
    ],
)
def test_what_fits_whole_in_16_bits_stays_whole(slow, monkeypatch, limit, expected):
    monkeypatch.setattr(placement, "taken_bytes", lambda device: 0)
    working, device_map = number_formats._placed(config(torch.bfloat16), limit, torch.float32, True, "cpu")
    on_disk = device_map and device_map["model.language_model.layers.0"]
    assert (working, on_disk) == expected
    # Asked for by name, a format is kept.
    working, _ = number_formats._placed(config(torch.bfloat16), limit, torch.bfloat16, False, "cpu")
    assert working == torch.bfloat16
