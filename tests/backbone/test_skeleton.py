"""Parameters of the language backbone where its decoder is not a module of its own."""

from transformers import AutoConfig

from optimum_mllm_prune.backbone import Backbone, model_class_of
from optimum_mllm_prune.backbone.skeleton import skeleton


def test_a_vision_encoder_inside_the_decoder_is_no_backbone():
    config = AutoConfig.for_model("git")
    model = skeleton(model_class_of(config), config)
    assert model.get_decoder() is model.git
    vision = sum(p.numel() for p in model.git.image_encoder.parameters())
    backbone = Backbone(type(model), config)
    assert backbone.backbone_parameters == backbone.parameters - vision
    assert vision > 80_000_000
