"""Edited configs as a reload sees them, and values that differ between layers."""

import json
import math

import pytest
from families import FAMILIES
from transformers import AutoConfig

from optimum_mllm_prune.backbone import NotExpressibleError
from optimum_mllm_prune.backbone.text_config import edited, text_config, text_value


def test_infinity_survives_an_edit(tmp_path):
    config = AutoConfig.for_model("nemotron_h_omni")
    assert math.inf in text_config(config).time_step_limit
    again = edited(config, {"intermediate_size": 1024})
    assert list(text_config(again).time_step_limit) == list(text_config(config).time_step_limit)
    again.save_pretrained(tmp_path)
    assert "__float__" in json.dumps(json.loads((tmp_path / "config.json").read_text()))
    assert text_config(AutoConfig.from_pretrained(tmp_path)).to_dict() == text_config(again).to_dict()


def test_a_value_of_each_layer_is_not_one_value():
    config = FAMILIES["gemma4"].config()
    assert text_value(config, "hidden_size") == 64
    assert text_value(config, "no_such_key") is None
    with pytest.raises(NotExpressibleError, match=r"^its head_dim differs between layers$"):
        text_value(config, "head_dim")


def test_layers_with_values_of_their_own_keep_them():
    config = FAMILIES["gemma4"].config()
    assert list(text_config(config).to_dict()["per_layer_config"]) == ["02", "05", "08", "11"]
    outer = edited(config, {}, outer={"image_token_id": 295})
    assert (outer.image_token_id, outer.text_config.to_dict()) == (295, config.text_config.to_dict())
