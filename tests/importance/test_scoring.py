"""What stands before and after the calibration passes: weights that are not there, units whose layout is not known."""

from contextlib import contextmanager

import pytest
import torch
from accelerate import cpu_offload
from checkpoint import tiny_llava
from families import FAMILIES

from optimum_mllm_prune.backbone import Backbone
from optimum_mllm_prune.configuration import PruningConfig
from optimum_mllm_prune.errors import UserInputError
from optimum_mllm_prune.importance import Scores
from optimum_mllm_prune.importance.scoring import score
from optimum_mllm_prune.planning import make_plan


QKV, GATE_UP = "self_attn.qkv_proj", "mlp.gate_up_proj"
UNKNOWN = "the layout of the fused projection model.language_model.layers.0.{}.weight is not one of the known ones"
LAYERS = PruningConfig(num_layers=1, importance="magnitude")
WIDTH = PruningConfig(ratio=0.1, importance="magnitude_l2")


@contextmanager
def scrambled(*roles):
    """Phi-3, the output channels of some fused projections in an order of which nothing is known."""
    model = FAMILIES["llava_phi3"].build()
    handles = []
    for name, module in model.named_modules():
        if name.endswith(roles):
            order = torch.randperm(module.out_features, generator=torch.Generator().manual_seed(0))
            handles.append(module.register_forward_hook(lambda _, __, output, order=order: output[..., order]))
    yield model
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("config", [LAYERS, WIDTH], ids=["layers", "width"])
@pytest.mark.parametrize(("role", "kind"), [(QKV, "heads"), (GATE_UP, "channels")])
def test_units_of_unknown_layout_are_left_out_with_the_reason(role, kind, config, tmp_path):
    with scrambled(role) as model:
        scores, _ = score(model, None, Backbone.of(model), config, None)
    assert scores.left_out == {kind: UNKNOWN.format(role)}
    assert scores.tensors.keys() == {"layers", "heads", "channels"} - {kind}
    scores.save(tmp_path)
    assert Scores.load(tmp_path).left_out == scores.left_out


def test_layers_go_where_no_layout_is_known():
    with scrambled(QKV, GATE_UP) as model:
        backbone = Backbone.of(model)
        scores, _ = score(model, None, backbone, LAYERS, None)
        assert len(make_plan(backbone, LAYERS, scores).removed_layers) == 1


def test_channels_give_all_where_the_layout_of_heads_is_not_known():
    with scrambled(QKV) as model:
        backbone = Backbone.of(model)
        plan = make_plan(backbone, WIDTH, score(model, None, backbone, WIDTH, None)[0])
    assert plan.removed_heads == {}
    assert len(plan.removed_channels) == backbone.num_layers
    assert plan.notes[0] == f"heads: {UNKNOWN.format(QKV)}"


@pytest.mark.parametrize("importance", ["magnitude_l2", "taylor"])
def test_no_width_is_refused_before_calibration(importance):
    config = PruningConfig(ratio=0.1, importance=importance)
    with scrambled(QKV, GATE_UP) as model, pytest.raises(UserInputError) as refused:
        score(model, None, Backbone.of(model), config, None)
    assert str(refused.value) == (
        f"no width of this architecture can be changed (heads: {UNKNOWN.format(QKV)}; "
        f"channels: {UNKNOWN.format(GATE_UP)}): use method 'layer'."
    )


@pytest.mark.parametrize("importance", ["angular", "loss", "merge"])
def test_layers_in_sequence_beside_widths(importance, tmp_path):
    model, processor = tiny_llava.moved(0.01), tiny_llava.processor()
    backbone = Backbone.of(model)
    config = PruningConfig(num_layers=2, importance=importance, num_samples=3)
    found, calibration = score(model, processor, backbone, config, tiny_llava.rows())
    assert found.metrics == {"layer": importance, "width": "activation"}
    assert found.tensors.keys() == {"layers", "heads", "channels"} | (
        {"layer_runs"} if importance == "angular" else set()
    )
    assert (calibration["samples"], calibration["importance"]) == (3, importance)
    assert calibration["tokens"]["image"] == 3 * 16
    found.save(tmp_path)
    again = Scores.load(tmp_path)
    assert again.fingerprint == found.fingerprint
    assert len(make_plan(backbone, config, again).removed_layers) == 2


@pytest.mark.parametrize("importance", ["angular", "loss", "merge"])
def test_what_is_not_finite_is_refused(importance):
    model, processor = tiny_llava.model(), tiny_llava.processor()
    with torch.no_grad():
        model.model.language_model.norm.weight[0] = float("nan")
        for layer in model.model.language_model.layers:
            layer.mlp.down_proj.weight[0, 0] = float("inf")
    config = PruningConfig(num_layers=2, importance=importance, num_samples=2)
    with pytest.raises(UserInputError) as told:
        score(model, processor, Backbone.of(model), config, tiny_llava.rows())
    assert str(told.value) == f"importance '{importance}' is not finite in float32: check the model's weights."


@pytest.mark.parametrize("config", [LAYERS, WIDTH], ids=["layers", "width"])
def test_offloaded_weights_are_refused(config):
    model = FAMILIES["llava_llama_gqa"].build()
    backbone = Backbone.of(model)
    cpu_offload(model, execution_device="cpu")
    with pytest.raises(UserInputError, match=r"outside the decoder layers are offloaded \(first: model.vision_tower"):
        score(model, None, backbone, config, None)
