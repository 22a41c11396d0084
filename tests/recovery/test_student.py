"""What trains, and the plain model that comes out."""

from functools import cache

import pytest
import torch
from families import FAMILIES
from importance.naive import batch_of
from peft import PeftModel
from recovery import tiny

from optimum_mllm_prune.recovery.student import BRIDGE, Student, is_half, trained_parameters


FAMILY = "llava_llama_gqa"
MODES = ["projector", "lora", "full"]


@cache
def plain_of(family):
    """Names and logits of the plain model."""
    model = FAMILIES[family].build()
    with torch.no_grad():
        return set(model.state_dict()), model(**batch_of(family, model.config).inputs).logits


def student(family=FAMILY, bridge=None, dtype=torch.float32, **given):
    return Student(FAMILIES[family].build(dtype=dtype), tiny.arguments("unused", **given), bridge)


def trained_names(student):
    return {name for name, parameter in student.model.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def move(model):
    """Change what trains, as training would."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("vision", [False, True])
def test_projector_alone(vision):
    made = student(train="projector", train_vision=vision)
    wanted = set(made.parts.projector_parameters) | (set(made.parts.tower_parameters) if vision else set())
    assert trained_names(made) == wanted


@pytest.mark.parametrize("vision", [False, True])
def test_in_full(vision):
    made = student(train="full", train_vision=vision)
    everything = {name for name, _ in made.model.named_parameters()}
    assert trained_names(made) == (everything if vision else everything - made.parts.tower_parameters)


@pytest.mark.parametrize("vision", [False, True])
def test_lora(vision):
    made = student(train="lora", train_vision=vision, lora_r=3)
    assert isinstance(made.model, PeftModel)
    adapters = {name for name in trained_names(made) if ".lora_A." in name or ".lora_B." in name}
    assert len(adapters) == 2 * len(made.parts.linears)
    whole = {
        name.removeprefix("base_model.model.").replace("modules_to_save.default.", "")
        for name in trained_names(made) - adapters
    }
    assert whole == made.parts.projector_parameters | (made.parts.tower_parameters if vision else set())
    assert all(3 in parameter.shape for name, parameter in made.model.named_parameters() if name in adapters)


@pytest.mark.parametrize("mode", MODES)
def test_a_merger_inside_the_tower_trains_without_the_tower(mode):
    made = student("qwen2_vl", train=mode)
    inside = {name for name in trained_names(made) if ".visual." in name}
    assert inside and all(made.is_projector(name) for name in inside)


@pytest.mark.parametrize("mode", MODES)
def test_the_projectors_parameters_are_known_by_name(mode):
    made = student(train=mode)
    found = {name for name in trained_names(made) if made.is_projector(name)}
    assert len(found) == len(made.parts.projector_parameters)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_merged_model_is_plain_and_says_the_same(family):
    names, before = plain_of(family)
    # Of the two kinds of towers, without and with a projector inside, one each.
    made = student(family, train="lora", train_vision=family in ("llava_qwen2", "qwen3_vl"))
    inputs = batch_of(family, made.base.config).inputs
    move(made.model)
    expected = made.model.eval()(**inputs).logits
    plain = made.plain()
    assert set(plain.state_dict()) == names
    assert type(plain).__module__.startswith("transformers.models")
    assert (expected - before).abs().max() > 0.1
    torch.testing.assert_close(plain(**inputs).logits, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


@pytest.mark.parametrize("mode", MODES)
def test_the_plain_model_is_in_eval_mode_and_frozen(mode):
    made = student(train=mode)
    made.model.train()
    plain = made.plain()
    assert not plain.training and not any(parameter.requires_grad for parameter in plain.parameters())


@pytest.mark.parametrize("mode", MODES)
def test_a_bridge_trains_and_goes(mode):
    made = student(bridge={"final": (64, 80), "layers": (64, 80)}, train=mode)
    assert sum(BRIDGE in name for name in trained_names(made)) == 2
    assert made.bridge["final"](torch.ones(3, 64)).shape == (3, 80)
    plain = made.plain()
    assert set(plain.state_dict()) == plain_of(FAMILY)[0]


@pytest.mark.parametrize("mode", MODES)
def test_without_a_bridge_there_is_none(mode):
    made = student(train=mode)
    assert made.bridge is None
    assert not any(BRIDGE in name for name, _ in made.model.named_parameters())


@pytest.mark.parametrize("mode", MODES)
def test_a_whole_state_makes_the_same_model(mode):
    made = student(bridge={"final": (64, 80)}, train=mode)
    move(made.model)
    state = {name: tensor.clone() for name, tensor in made.model.state_dict().items()}
    fresh = made.plain(state)
    assert fresh is not made.base
    expected = made.plain().state_dict()
    assert fresh.state_dict().keys() == expected.keys()
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_tied_weights_stay_tied_when_made_of_a_state():
    made = student("llava_llama_tied", train="full")
    fresh = made.plain({name: tensor.clone() for name, tensor in made.model.state_dict().items()})
    assert fresh.get_output_embeddings().weight is fresh.get_input_embeddings().weight


@pytest.mark.parametrize("mode", MODES)
def test_under_mixed_precision_what_trains_is_fp32(mode):
    made = student(train=mode, dtype=torch.bfloat16, bf16=True, bridge={"final": (64, 80)})
    formats = {parameter.dtype for parameter in made.model.parameters() if parameter.requires_grad}
    assert formats == {torch.float32} and not is_half(made.model)
    frozen = [p.dtype for name, p in made.model.named_parameters() if not p.requires_grad and BRIDGE not in name]
    assert set(frozen) == {torch.bfloat16}
    plain = made.plain()
    assert {parameter.dtype for parameter in plain.parameters()} == {torch.bfloat16}
    assert plain(**batch_of(FAMILY, plain.config).to("cpu", torch.bfloat16).inputs).logits.isfinite().all()


@pytest.mark.parametrize("mode", MODES)
def test_weights_in_16_bits_are_told(mode):
    assert is_half(student(train=mode, dtype=torch.bfloat16).model)
    assert not is_half(student(train=mode).model)


def test_parameters_are_counted():
    made = student(train="projector")
    sizes = {name: parameter.numel() for name, parameter in made.base.named_parameters()}
    projector = sum(sizes[name] for name in made.parts.projector_parameters)
    assert trained_parameters(made.model) == (projector, sum(sizes.values()))
