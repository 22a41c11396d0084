import json

import pytest
from calibration.processors import build, tokenizer
from transformers import LlavaProcessor

from optimum_mllm_prune.calibration.processors import load_processor
from optimum_mllm_prune.errors import UserInputError


def error_line(folder):
    with pytest.raises(UserInputError) as error:
        load_processor(str(folder))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_saved_processor_comes_back(tmp_path):
    build("llava-clip").save_pretrained(tmp_path)
    assert isinstance(load_processor(str(tmp_path)), LlavaProcessor)


@pytest.mark.parametrize("message", ["needs the Torchvision library", "requires `torchvision` to be installed."])
@pytest.mark.parametrize("kind", [ImportError, ValueError])
def test_a_missing_torchvision_is_named(monkeypatch, kind, message):
    def refuse(*args, **kwargs):
        raise kind("\nSomeProcessor " + message + "\nCheck out the instructions")

    monkeypatch.setattr("transformers.AutoProcessor.from_pretrained", refuse)
    line = "The processor of 'some/model' needs torchvision, which is not installed; install the torchvision build "
    assert error_line("some/model") == line + "that matches your torch."


def test_a_model_without_processor(tmp_path):
    tokenizer([]).save_pretrained(tmp_path / "text")
    (tmp_path / "text" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert error_line(tmp_path / "text").endswith("has no processor for images; give a vision-language model.")
    (tmp_path / "empty").mkdir()
    assert "cannot be loaded: Unrecognized processing class" in error_line(tmp_path / "empty")
