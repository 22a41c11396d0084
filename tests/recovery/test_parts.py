"""Tower, projector and backbone, on every family."""

from functools import cache

import pytest
from families import FAMILIES
from torch import nn

from optimum_mllm_prune.backbone import Backbone
from optimum_mllm_prune.errors import UserInputError
from optimum_mllm_prune.recovery.parts import parts_of


# Where the projector is not simply what stands beside tower and decoder under its usual name.
PROJECTORS = {
    **{
        name: ["model.visual.merger"]
        for name in ("qwen2_vl", "qwen2_5_vl", "qwen3_5", "qwen3_5_moe", "glm4v", "glm_ocr")
    },
    "qwen3_vl": ["model.visual.merger", *(f"model.visual.deepstack_merger_list.{i}" for i in range(2))],
    "qwen3_vl_moe": ["model.visual.merger", "model.visual.deepstack_merger_list.0"],
    **{name: ["model.connector"] for name in ("idefics2", "idefics3", "smolvlm")},
    "granite4_vision": [
        *(f"model.layerwise_projectors.{i}" for i in range(2)),
        *(f"model.spatial_projectors.{i}" for i in range(4)),
    ],
    "gemma4": ["model.embed_vision"],
    "lighton_ocr": ["model.vision_projection"],
    "llama4": ["multi_modal_projector"],
}


@cache
def model_of(family):
    return FAMILIES[family].build()


@cache
def parts(family):
    return parts_of(model_of(family), Backbone.of(model_of(family)))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_projector_is_found(family):
    assert parts(family).projector == PROJECTORS.get(family, ["model.multi_modal_projector"])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_has_its_part(family):
    found = parts(family)
    assert found.tower is not None
    tower = found.tower_parameters - found.projector_parameters
    assert tower and found.projector_parameters and found.backbone_parameters
    assert not found.projector_parameters & found.backbone_parameters
    assert not tower & found.backbone_parameters
    everything = {name for name, _ in model_of(family).named_parameters()}
    assert everything <= tower | found.projector_parameters | found.backbone_parameters


@pytest.mark.parametrize("family", FAMILIES)
def test_a_projector_inside_the_tower_is_all_that_they_share(family):
    found = parts(family)
    inside = all(module.startswith(f"{found.tower}.") for module in found.projector)
    assert found.tower_parameters & found.projector_parameters == (found.projector_parameters if inside else set())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_projectors_modules_can_be_called(family):
    for name in parts(family).projector:
        assert not isinstance(model_of(family).get_submodule(name), nn.ModuleList | nn.ModuleDict)


@pytest.mark.parametrize("family", FAMILIES)
def test_linears_are_all_in_the_decoder_layers(family):
    prefix = Backbone.of(model_of(family)).layers_prefix
    found = parts(family).linears
    assert len(found) == len(set(found)) >= 4 * len(model_of(family).get_submodule(prefix))
    for name in found:
        assert name.startswith(f"{prefix}.")
        assert type(model_of(family).get_submodule(name)) is nn.Linear


def test_newlines_between_images_belong_to_the_projector():
    assert "model.image_newline" in parts("llava_next").projector_parameters


def test_head_and_embeddings_belong_to_the_backbone():
    for family in ("llava_llama", "llava_llama_tied"):
        model = model_of(family)
        names = {name for name, p in model.named_parameters() if p is model.get_output_embeddings().weight}
        assert names and names <= parts(family).backbone_parameters


def test_a_model_without_a_projector_is_refused():
    model = FAMILIES["llava_llama"].build()
    backbone = Backbone.of(model)
    model.model.multi_modal_projector = nn.Identity()
    with pytest.raises(UserInputError, match="no projector is found between the vision tower and the backbone"):
        parts_of(model, backbone)
