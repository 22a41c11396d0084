"""Models and devices that are refused, and what is written down of names."""

import json

import pytest
import torch
from checkpoint import tiny_llava

from optimum_mllm_prune import UserInputError
from optimum_mllm_prune.loading import check_device, load_config, load_model, public_name


def reason_of(call):
    with pytest.raises(UserInputError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


class TestDevice:
    @pytest.mark.parametrize("device", [None, "cpu"])
    def test_it_is_there(self, device):
        check_device(device)

    @pytest.mark.parametrize(
        ("device", "reason"),
        [("meta", "it holds no weights"), ("nonsense", "Expected one of cpu, "), ("cuda:x", "Invalid device string")],
    )
    def test_it_cannot_be_used(self, device, reason):
        line = reason_of(lambda: check_device(device))
        assert line.startswith(f"device '{device}' cannot be used ({reason}")
        assert line.endswith("): use cpu, or a GPU that torch can see.")

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    @pytest.mark.parametrize("where", ["device", "device_map"])
    def test_a_gpu_that_is_not_there(self, where, tmp_path):
        folder = str(tiny_llava.save_model(tmp_path / "llava"))
        line = reason_of(lambda: load_model(folder, load_config(folder), **{where: "cuda"}))
        assert "cannot be" in line
        assert "Torch not compiled with CUDA enabled" in line or "NVIDIA" in line


class TestPickle:
    @pytest.fixture
    def pickled(self, tmp_path):
        folder = tiny_llava.save_model(tmp_path / "llava")
        (folder / "model.safetensors").unlink()
        # Reading it would be an error of another kind: it must not be opened at all.
        (folder / "pytorch_model.bin").write_bytes(b"any code")
        return str(folder)

    def test_it_is_refused(self, pickled):
        assert reason_of(lambda: load_model(pickled, load_config(pickled))) == (
            f"the weights of '{pickled}' are pickled (pytorch_model.bin), which may run any code: convert them, by "
            "loading the model with transformers where you trust it and saving it with save_pretrained."
        )


class TestRemoteCode:
    def with_auto_map(self, folder, model_type="llava"):
        tiny_llava.save_model(folder)
        config = json.loads((folder / "config.json").read_text())
        names = {"AutoConfig": "own.OwnConfig", "AutoModelForImageTextToText": "own.OwnModel"}
        (folder / "config.json").write_text(json.dumps(config | {"auto_map": names, "model_type": model_type}))
        (folder / "own.py").write_text("raise RuntimeError('code from the repository was run')\n")
        return str(folder)

    def test_a_class_of_transformers_is_taken_where_there_is_one(self, tmp_path):
        folder = self.with_auto_map(tmp_path / "llava")
        config = load_config(folder)
        assert type(load_model(folder, config)).__module__.startswith("transformers.models.llava")

    def test_a_class_that_only_the_repository_has_is_refused(self, tmp_path):
        folder = self.with_auto_map(tmp_path / "llava", model_type="own_llava")
        assert reason_of(lambda: load_config(folder)) == (
            f"'{folder}' needs code from its repository, which the pruned checkpoint would need too: give a model "
            "that transformers itself has a class for."
        )


class TestPublicName:
    @pytest.mark.parametrize("name", ["me/rows", "me/rows:part", "model"])
    def test_a_hub_id_stays_whole(self, name):
        assert public_name(name) == name

    @pytest.mark.parametrize("name", ["/home/me/rows", "./me/rows", "~/rows", "a/b/rows", "/key=1/rows"])
    def test_a_path_keeps_its_last_part(self, name):
        assert public_name(name) == "rows"

    def test_folders_that_exist(self, tmp_path, monkeypatch):
        (tmp_path / "secret" / "rows").mkdir(parents=True)
        monkeypatch.chdir(tmp_path)
        assert public_name("secret/rows") == "rows"
        assert public_name(".") == tmp_path.name


class TestQuantized:
    def test_eight_bits(self, tmp_path):
        folder = str(tiny_llava.save_model(tmp_path / "llava"))
        config = load_config(folder)
        model, whole = load_model(folder, config, quantization="8bit"), load_model(folder, config)
        weight = model.model.language_model.layers[0].mlp.down_proj.weight
        assert weight.dtype == torch.int8
        tokens = torch.tensor([[5, 6, 7]])
        with torch.no_grad():
            few, all_bits = (torch.log_softmax(m(input_ids=tokens).logits.float(), -1) for m in (model, whole))
        assert 0 < (few - all_bits).abs().max() < 0.1 * all_bits.abs().max()

    def test_an_unknown_number_of_bits(self, tmp_path):
        folder = str(tiny_llava.save_model(tmp_path / "llava"))
        line = reason_of(lambda: load_model(folder, load_config(folder), quantization="2bit"))
        assert line == "unknown quantization '2bit': use 8bit or 4bit."

    def test_without_bitsandbytes(self, tmp_path, monkeypatch):
        monkeypatch.setattr("optimum_mllm_prune.loading.is_bitsandbytes_available", lambda: False)
        folder = str(tiny_llava.save_model(tmp_path / "llava"))
        line = reason_of(lambda: load_model(folder, load_config(folder), quantization="4bit"))
        assert line == (
            "a model in 4bit needs bitsandbytes, which is not installed: pip install 'optimum-mllm-prune[quantized]'."
        )
