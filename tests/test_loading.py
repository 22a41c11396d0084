"""Models and devices that are refused, and what is written down of names."""

import json
import logging
import re

import pytest
import torch
from checkpoint import tiny_llava

from optimum_mllm_prune import MLLMPruner, PruningConfig, UserInputError
from optimum_mllm_prune.loading import check_device, load_config, load_model, public_name


def reason_of(call):
    with pytest.raises(UserInputError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def saved_in_whole_blocks(tmp_path):
    return str(tiny_llava.save_model(tmp_path / "whole", tiny_llava.in_whole_blocks()))


@pytest.fixture
def warned(caplog):
    """What is warned of when models are quantized."""
    logger = logging.getLogger("optimum.mllm_prune.quantization")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


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

    @pytest.mark.parametrize(
        ("method", "importance", "bits"),
        [("width", "taylor_group", "8bit"), ("width", "taylor_group", "4bit"), ("layer", "block_influence", "4bit")],
    )
    def test_scores_are_near_those_of_the_whole_model(self, method, importance, bits, tmp_path):
        folder = saved_in_whole_blocks(tmp_path)
        config = PruningConfig(method=method, importance=importance, num_samples=4)
        rows = tiny_llava.rows()
        few, whole = (
            MLLMPruner.from_pretrained(folder, "float32", "cpu", quantization=quantization).score(config, rows)
            for quantization in (bits, None)
        )
        assert few.model == whole.model
        for kind, scores in whole.tensors.items():
            both = torch.stack([few.tensors[kind].flatten(), scores.flatten()])
            assert not torch.equal(*both)
            assert torch.corrcoef(both)[0, 1] > (0.99 if bits == "8bit" else 0.8), kind

    @pytest.mark.parametrize("instructions", [True, False])
    def test_gradients_pass_after_a_pass_without_them_on_every_cpu(self, instructions, tmp_path, monkeypatch):
        """With instructions for bfloat16 bitsandbytes would pack the weights."""
        monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: instructions)
        folder = saved_in_whole_blocks(tmp_path)
        made = MLLMPruner.from_pretrained(folder, "float32", "cpu", quantization="4bit")
        with torch.no_grad():
            made.model(input_ids=torch.tensor([[5, 6, 7]]))
        config = PruningConfig(importance="taylor_group", num_samples=2)
        assert all((scores > 0).all() for scores in made.score(config, tiny_llava.rows()).tensors.values())

    def test_what_four_bits_cannot_hold_on_a_cpu_stays_whole(self, tmp_path, warned):
        folder = str(tiny_llava.save_model(tmp_path / "llava"))
        model = load_model(folder, load_config(folder), device="cpu", quantization="4bit")
        held = {name for name, module in model.named_modules() if type(module).__name__ == "Linear4bit"}
        # Of all maps these alone read a multiple of 64 numbers.
        assert held == {f"model.vision_tower.encoder.layers.{layer}.mlp.fc2" for layer in range(3)}
        (told,) = {record.getMessage() for record in warned.records}
        assert re.fullmatch(
            r"\d+ of \d+ linear maps are not held in 4 bits, since on a CPU that takes inputs in multiples of 64 "
            r"\(first: [\w.]+, \d+\)\.",
            told,
        )

    @pytest.mark.parametrize(
        ("wish", "told"),
        [
            (
                {"importance": "wanda", "ratio": 0.2},
                "importance 'wanda' looks at weights, which this model holds in a few bits: use one of taylor_group, "
                "activation, or load it without a quantization.",
            ),
            (
                {"importance": "magnitude", "num_layers": 1},
                "importance 'magnitude' looks at weights, which this model holds in a few bits: use one of "
                "block_influence, angular, loss, or load it without a quantization.",
            ),
            (
                {"importance": "activation", "ratio": 0.2, "method": "hidden"},
                "the hidden size cannot be scored on a quantized model: load it without a quantization.",
            ),
        ],
    )
    def test_what_looks_at_weights_is_refused(self, wish, told, tmp_path):
        folder = str(tiny_llava.save_model(tmp_path / "llava"))
        pruner = MLLMPruner.from_pretrained(folder, device="cpu", quantization="8bit")
        assert reason_of(lambda: pruner.score(PruningConfig(**wish), tiny_llava.rows())) == told

    def test_it_is_not_pruned(self, tmp_path):
        folder = str(tiny_llava.save_model(tmp_path / "llava"))
        pruner = MLLMPruner.from_pretrained(folder, device="cpu", quantization="8bit")
        plan = pruner.plan(PruningConfig(num_layers=1, num_samples=2), tiny_llava.rows())
        assert reason_of(lambda: pruner.prune(plan)) == (
            "a quantized model can be scored, and not pruned: save the plan, and carry it out on the model without a "
            "quantization."
        )

    def test_a_limit_of_memory(self, tmp_path):
        folder = str(tiny_llava.save_model(tmp_path / "llava"))
        line = reason_of(lambda: MLLMPruner.from_pretrained(folder, max_memory="6GB", quantization="8bit"))
        assert line == "a quantized model is whole in memory: leave max_memory or quantization out."

    def test_an_unknown_number_of_bits(self, tmp_path):
        folder = str(tiny_llava.save_model(tmp_path / "llava"))
        line = reason_of(lambda: load_model(folder, load_config(folder), quantization="2bit"))
        assert line == "unknown quantization '2bit': use 8bit or 4bit."

    def test_without_bitsandbytes(self, tmp_path, monkeypatch):
        monkeypatch.setattr("optimum_mllm_prune.quantization.is_bitsandbytes_available", lambda: False)
        folder = str(tiny_llava.save_model(tmp_path / "llava"))
        line = reason_of(lambda: load_model(folder, load_config(folder), quantization="4bit"))
        assert line == (
            "a model in 4bit needs bitsandbytes, which is not installed: pip install 'optimum-mllm-prune[quantized]'."
        )
