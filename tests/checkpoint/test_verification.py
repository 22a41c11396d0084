"""A checkpoint that is the model in memory passes; one that differs in anything does not."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoint import tiny_llava
from families import FAMILIES
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from optimum_mllm_prune.calibration.batches import make_batch
from optimum_mllm_prune.calibration.rows import synthetic_row
from optimum_mllm_prune.checkpoint import (
    Verification,
    VerificationError,
    auto_class,
    generation_is_consistent,
    reference_of,
    reload,
    special_tokens,
    verify,
)
from optimum_mllm_prune.checkpoint.verification import _raise_on_failure


LAST_NORM = "model.language_model.norm.weight"


def inputs_for(model):
    batch = make_batch(tiny_llava.processor(), [synthetic_row()]).to("cpu", model.dtype)
    return dict(batch.inputs)


@pytest.fixture(scope="module")
def reference():
    model = tiny_llava.model()
    return reference_of(model, inputs_for(model))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_llava.save_model(tmp_path_factory.mktemp("good") / "llava")


@pytest.fixture
def copied(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "llava")
    return tmp_path / "llava"


@pytest.fixture
def changed(copied):
    """Change the tensors of a copy of the good checkpoint."""

    def change(edit):
        file = copied / "model.safetensors"
        tensors = load_file(file)
        (norm,) = [name for name in tensors if name.endswith(("language_model.norm.weight", "model.norm.weight"))]
        edit(tensors, norm)
        save_file(tensors, file, metadata={"format": "pt"})
        return copied

    return change


class TestVerify:
    def test_a_good_one_passes(self, checkpoint, reference):
        assert verify(checkpoint, reference, has_processor=True) == Verification(
            max_abs_logit_difference=0.0,
            missing_keys=[],
            unexpected_keys=[],
            generated_tokens_equal=True,
            without_package=True,
            inputs="image + text",
            model_class="LlavaForConditionalGeneration",
        )

    def test_bfloat16_is_equal_to_the_bit(self, checkpoint, tmp_path):
        model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.bfloat16).eval()
        model.save_pretrained(tmp_path)
        reference = reference_of(model, inputs_for(model))
        assert reference.logits.dtype == torch.bfloat16
        found = verify(tmp_path, reference, has_processor=False)
        assert found.max_abs_logit_difference == 0.0
        assert found.generated_tokens_equal is True

    def test_an_altered_weight(self, changed, reference):
        def edit(tensors, norm):
            tensors[norm][7] += 1e-3

        with pytest.raises(
            VerificationError, match=r"^the reloaded checkpoint's logits differ from the model in memory by"
        ):
            verify(changed(edit), reference, has_processor=False)

    def test_a_dropped_weight(self, changed, reference):
        with pytest.raises(VerificationError) as error:
            verify(changed(lambda tensors, norm: tensors.pop(norm)), reference, has_processor=False)
        assert str(error.value) == (f"the saved checkpoint has missing keys ['{LAST_NORM}'] and unexpected keys []")

    def test_one_weight_too_many(self, changed, reference):
        def edit(tensors, norm):
            tensors["model.extra.weight"] = torch.zeros(3)

        with pytest.raises(VerificationError) as error:
            verify(changed(edit), reference, has_processor=False)
        assert str(error.value) == (
            "the saved checkpoint has missing keys [] and unexpected keys ['model.extra.weight']"
        )

    def test_damaged(self, copied, reference):
        (copied / "model.safetensors").write_bytes(b"no weights")
        with pytest.raises(VerificationError, match=r"^the saved checkpoint does not load in a fresh process: "):
            verify(copied, reference, has_processor=False)

    def test_a_processor_that_does_not_load(self, copied, reference):
        (copied / "tokenizer.json").write_text("{oops")
        with pytest.raises(VerificationError, match=r"^the saved checkpoint does not load in a fresh process: "):
            verify(copied, reference, has_processor=True)


class TestVerdict:
    GOOD = Verification(0.0, [], [], True, True, "text", "Any")

    @pytest.mark.parametrize("equal", [True, None])
    def test_good(self, equal):
        _raise_on_failure(replace(self.GOOD, generated_tokens_equal=equal), None)

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            ({"max_abs_logit_difference": 1e-7}, "differ from the model in memory by 1e-07"),
            ({"max_abs_logit_difference": float("nan")}, "differ from the model in memory by nan"),
            ({"missing_keys": ["a"]}, r"has missing keys \['a'\]"),
            ({"unexpected_keys": ["b"]}, r"unexpected keys \['b'\]"),
            ({"generated_tokens_equal": False}, r"differs from generation without one, by 0\.5 of the largest logit"),
            ({"without_package": False}, "the fresh process imported this package"),
        ],
    )
    def test_bad(self, change, text):
        with pytest.raises(VerificationError, match=text):
            _raise_on_failure(replace(self.GOOD, **change), {"difference": 0.5})


class TestGeneration:
    def test_llava_is_consistent(self):
        model = tiny_llava.model()
        assert generation_is_consistent(model, inputs_for(model))

    @pytest.mark.parametrize(("name", "consistent"), [("paligemma", False), ("llava_gemma", True), ("gemma3", True)])
    def test_families_on_one_row_of_text(self, name, consistent):
        family = FAMILIES[name]
        model = family.build()
        row = {key: value[:1] for key, value in family.text_inputs(model.config).items()}
        assert generation_is_consistent(model, row) is consistent

    def test_a_stale_cache_is_noticed(self):
        model = tiny_llava.model()

        def disturb(module, args, kwargs, output):
            if kwargs.get("use_cache"):
                output.logits = output.logits + 0.1 * output.logits.flip(-1)

        with model.register_forward_hook(disturb, with_kwargs=True):
            assert not generation_is_consistent(model, inputs_for(model))


class TestReference:
    def test_it_does_not_need_the_model(self, reference):
        model = tiny_llava.model()
        inputs = inputs_for(model)
        with torch.no_grad():
            assert torch.equal(reference.logits, model(**inputs).logits)
        assert reference.inputs.keys() == inputs.keys()
        assert reference.model_class == auto_class(model) == "AutoModelForImageTextToText"
        assert (reference.dtype, reference.device) == (torch.float32, "cpu")
        assert reference.new_tokens > 0
        assert reference_of(model, inputs, generation=False).new_tokens == 0

    def test_special_tokens(self):
        config = tiny_llava.model().config
        assert {config.image_token_id, config.pad_token_id} <= set(special_tokens(config))
        assert special_tokens(config) == sorted(set(special_tokens(config)))


def test_the_fresh_process_refuses_this_package():
    source = Path(reload.__file__).read_text(encoding="utf-8").partition('if __name__ == "__main__":')[0]
    script = source + (
        "import importlib\n"
        "import importlib.util\n"
        "assert importlib.util.find_spec(PACKAGE) is not None\n"
        "sys.meta_path.insert(0, Blocked())\n"
        "for name in (PACKAGE, PACKAGE + '.pruner'):\n"
        "    try:\n"
        "        importlib.import_module(name)\n"
        "    except ImportError as error:\n"
        "        print(error)\n"
        "import json.tool\n"
        "print(PACKAGE in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["optimum_mllm_prune must not be needed to load a checkpoint"] * 2 + [
        "False"
    ], done.stderr
