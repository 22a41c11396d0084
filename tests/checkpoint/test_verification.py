"""A checkpoint that is the model in memory passes; one that differs in anything does not."""

import copy
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoint import tiny_llava
from families import FAMILIES
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from optimum_mllm_prune.backbone import Backbone
from optimum_mllm_prune.backbone.skeleton import attention_implementations
from optimum_mllm_prune.calibration.batches import make_batch
from optimum_mllm_prune.calibration.rows import synthetic_row
from optimum_mllm_prune.checkpoint import (
    Verification,
    VerificationError,
    auto_class,
    fresh_process,
    generation_is_consistent,
    reference_of,
    reload,
    special_tokens,
)
from optimum_mllm_prune.checkpoint import verify as verify_by
from optimum_mllm_prune.checkpoint.verification import CACHE_TOLERANCE, _raise_on_failure


LAYERS = "model.language_model.layers"
TRAINED = Path(__file__).parents[2] / "examples" / "digit_scenes" / "llava"
LAST_NORM = "model.language_model.norm.weight"


def verify(folder, reference, has_processor, layers_on_disk=False):
    with fresh_process(layers_on_disk) as fresh:
        return verify_by(folder, reference, has_processor, fresh)


def inputs_for(model):
    batch = make_batch(tiny_llava.processor(), [synthetic_row()]).to("cpu", model.dtype)
    return dict(batch.inputs)


@pytest.fixture(scope="module")
def reference():
    model = tiny_llava.model()
    return reference_of(model, inputs_for(model), LAYERS)


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


@pytest.fixture
def runs_instead(monkeypatch, tmp_path):
    """Let the fresh process run another program."""

    def replace_by(program):
        (tmp_path / "reload.py").write_text(program, encoding="utf-8")
        monkeypatch.setattr(reload, "__file__", str(tmp_path / "reload.py"))

    return replace_by


class TestVerify:
    def test_a_good_one_passes(self, checkpoint, reference):
        found = verify(checkpoint, reference, has_processor=True)
        assert found.cache_logit_difference < 1e-5
        assert replace(found, cache_logit_difference=None) == Verification(
            max_abs_logit_difference=0.0,
            missing_keys=[],
            unexpected_keys=[],
            generated_tokens_equal=True,
            cache_logit_difference=None,
            without_package=True,
            inputs="image + text",
            model_class="LlavaForConditionalGeneration",
        )

    def test_bfloat16_is_equal_to_the_bit(self, checkpoint, tmp_path):
        model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.bfloat16).eval()
        model.save_pretrained(tmp_path)
        reference = reference_of(model, inputs_for(model), LAYERS)
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


class TestCache:
    """A cache that is wrong must fail the proof in every number format."""

    @pytest.fixture
    def losing(self, runs_instead):
        """Make the fresh process lose the past of one decoder layer once it generates token by token."""
        source = Path(reload.__file__).read_text(encoding="utf-8")
        lose = (
            "from transformers.cache_utils import DynamicCache\n"
            "update = DynamicCache.update\n"
            "def lose(self, keys, values, layer, *rest, **options):\n"
            "    if layer == 5 and keys.shape[-2] == 1:\n"
            "        self.layers[layer].keys.zero_()\n"
            "        self.layers[layer].values.zero_()\n"
            "    return update(self, keys, values, layer, *rest, **options)\n"
            "DynamicCache.update = lose\n"
        )
        start = 'if __name__ == "__main__":'
        runs_instead(source.replace(start, lose + start))

    @pytest.mark.usefixtures("losing")
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_lost_past_in_one_layer(self, dtype):
        model = AutoModelForImageTextToText.from_pretrained(TRAINED, dtype=dtype).eval()
        reference = reference_of(model, inputs_for(model), LAYERS)
        with pytest.raises(
            VerificationError, match=r"^generation with a cache differs from generation without one, by"
        ):
            verify(TRAINED, reference, has_processor=False)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_rounding_is_far_below_the_tolerance(self, dtype):
        model = AutoModelForImageTextToText.from_pretrained(TRAINED, dtype=dtype).eval()
        found = reload.generate_both_ways(model, model.get_submodule(LAYERS), inputs_for(model), [], 4)
        assert found["equal"]
        assert found["gap"] == 0
        assert found["difference"] < CACHE_TOLERANCE / 100

    def test_tokens_that_differ_are_told_with_their_gap(self):
        model = tiny_llava.model()

        def disturb(module, args, kwargs, output):
            if kwargs.get("use_cache"):
                output.logits = -output.logits

        with model.register_forward_hook(disturb, with_kwargs=True):
            found = reload.generate_both_ways(model, model.get_submodule(LAYERS), inputs_for(model), [], 4)
        assert found["equal"] is False
        assert found["gap"] > 0.5
        assert found["difference"] > 1


class TestInFloat32:
    def test_the_model_is_as_before_afterwards(self):
        model = tiny_llava.model().bfloat16()
        inputs = inputs_for(model)
        before = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
        wide = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in inputs.items()}
        with torch.no_grad():
            expected = model(**inputs).logits
            with reload.in_float32(model, model.get_submodule(LAYERS)):
                assert model(**wide).logits.dtype == torch.float32
                # Only the layer that runs is widened.
                assert {p.dtype for p in model.get_submodule(LAYERS).parameters()} == {torch.bfloat16}
            assert torch.equal(model(**inputs).logits, expected)
        assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == before

    def test_it_computes_what_a_float32_model_does(self):
        narrow = tiny_llava.model().bfloat16()
        wide = copy.deepcopy(narrow).float()
        inputs = inputs_for(wide)
        with torch.no_grad(), reload.in_float32(narrow, narrow.get_submodule(LAYERS)):
            torch.testing.assert_close(narrow(**inputs).logits, wide(**inputs).logits, atol=1e-2, rtol=1e-3)

    def test_flash_attention_is_left_aside(self):
        ALL_ATTENTION_FUNCTIONS.register("flash_of_a_test", ALL_ATTENTION_FUNCTIONS["sdpa"])
        model = tiny_llava.model()
        model.set_attn_implementation({"text_config": "flash_of_a_test"})
        before = attention_implementations(model.config)
        with reload.in_float32(model, model.get_submodule(LAYERS)):
            inside = attention_implementations(model.config)
        assert inside == before | {"text_config": "eager"} != before
        assert attention_implementations(model.config) == before


class TestPlaces:
    def test_a_model_on_several_devices_is_placed_alike(self):
        model = tiny_llava.model()
        model.hf_device_map = {
            "model.vision_tower": 0,
            "model.language_model": torch.device("cuda", 1),
            "lm_head": "cpu",
        }
        found = reference_of(model, inputs_for(model), LAYERS).device_map
        assert json.loads(json.dumps(found)) == found
        assert found == {"model.vision_tower": 0, "model.language_model": "cuda:1", "lm_head": "cpu"}

    def test_the_fresh_process_takes_the_map(self, checkpoint, reference):
        spread = {"model": "cpu", "lm_head": "cpu"}
        found = verify(checkpoint, replace(reference, device_map=spread), has_processor=False)
        assert found.max_abs_logit_difference == 0
        wrong = {"model": "cpu", "lm_head": "nonsense"}
        with pytest.raises(VerificationError, match="does not load in a fresh process"):
            verify(checkpoint, replace(reference, device_map=wrong), has_processor=False)

    @pytest.mark.parametrize(("on_disk", "said"), [(True, "1048576"), (False, "None")])
    def test_where_layers_wait_on_disk_it_gives_memory_back_at_once(
        self, checkpoint, reference, monkeypatch, runs_instead, on_disk, said
    ):
        monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
        runs_instead('import os\nraise RuntimeError(os.environ.get("MALLOC_MMAP_THRESHOLD_"))\n')
        with pytest.raises(VerificationError, match=f"RuntimeError: {said}$"):
            verify(checkpoint, reference, has_processor=False, layers_on_disk=on_disk)


class TestFreshProcess:
    @pytest.fixture
    def waiting(self, runs_instead, tmp_path):
        """A program that says when it has started, and waits for its job as the real one does."""
        started = tmp_path / "started"
        runs_instead(f"import pathlib, sys\npathlib.Path({str(started)!r}).touch()\nsys.stdin.readline()\n")
        return started

    def test_it_starts_before_there_is_a_checkpoint(self, waiting):
        with fresh_process(layers_on_disk=False) as fresh:
            deadline = time.monotonic() + 60
            while not waiting.exists():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert fresh.process.poll() is None and fresh.scratch.is_dir()

    @pytest.mark.parametrize("end", [KeyboardInterrupt, ValueError])
    def test_it_is_gone_whatever_happens(self, waiting, end):
        with pytest.raises(end), fresh_process(layers_on_disk=False) as fresh:
            raise end
        assert fresh.process.returncode == -signal.SIGKILL
        assert not fresh.scratch.exists()

    def test_without_a_job_it_ends_quietly(self):
        with fresh_process(layers_on_disk=False) as fresh:
            assert fresh.process.communicate("", timeout=120) == (None, "")
            assert fresh.process.returncode == 0


class TestOutOfMemory:
    @pytest.mark.parametrize(
        "end",
        [
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            "raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.')",
            'raise RuntimeError("[enforce fail] DefaultCPUAllocator: can\'t allocate memory")',
            "raise MemoryError",
        ],
        ids=["killed", "GPU", "CPU", "Python"],
    )
    def test_in_the_fresh_process(self, checkpoint, reference, runs_instead, end):
        runs_instead(f"import torch\n{end}\n")
        with pytest.raises(MemoryError, match="the fresh process that loads the checkpoint ran out of memory"):
            verify(checkpoint, reference, has_processor=False)


class TestVerdict:
    GOOD = Verification(0.0, [], [], True, 1e-6, True, "text", "Any")

    @pytest.mark.parametrize(
        "change",
        [
            {},
            {"generated_tokens_equal": None, "cache_logit_difference": None},
            # Two logits tie, and rounding decides between them.
            {"generated_tokens_equal": False},
        ],
    )
    def test_good(self, change):
        _raise_on_failure(replace(self.GOOD, **change), gap=1e-6)

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            ({"max_abs_logit_difference": 1e-7}, "differ from the model in memory by 1e-07"),
            ({"max_abs_logit_difference": float("nan")}, "differ from the model in memory by nan"),
            ({"missing_keys": ["a"]}, r"has missing keys \['a'\]"),
            ({"unexpected_keys": ["b"]}, r"unexpected keys \['b'\]"),
            # Whether the tokens agree by luck does not matter.
            ({"cache_logit_difference": 0.5}, r"differs from generation without one, by 0\.5 of the largest logit"),
            ({"cache_logit_difference": float("nan")}, r"differs from generation without one, by nan"),
            ({"without_package": False}, "the fresh process imported this package"),
        ],
    )
    def test_bad(self, change, text):
        with pytest.raises(VerificationError, match=text):
            _raise_on_failure(replace(self.GOOD, **change), gap=0.0)

    def test_other_tokens_that_do_not_tie(self):
        with pytest.raises(VerificationError, match=r"differs from generation without one, by 0\.002 of"):
            _raise_on_failure(replace(self.GOOD, generated_tokens_equal=False), gap=2e-3)


class TestGeneration:
    def test_llava_is_consistent(self):
        model = tiny_llava.model()
        assert generation_is_consistent(model, inputs_for(model), LAYERS)

    @pytest.mark.parametrize(("name", "consistent"), [("paligemma", False), ("llava_gemma", True), ("gemma3", True)])
    def test_families_on_one_row_of_text(self, name, consistent):
        family = FAMILIES[name]
        model = family.build()
        row = {key: value[:1] for key, value in family.text_inputs(model.config).items()}
        assert generation_is_consistent(model, row, Backbone.of(model).layers_prefix) is consistent

    def test_a_stale_cache_is_noticed(self):
        model = tiny_llava.model()

        def disturb(module, args, kwargs, output):
            if kwargs.get("use_cache"):
                output.logits = output.logits + 0.1 * output.logits.flip(-1)

        with model.register_forward_hook(disturb, with_kwargs=True):
            assert not generation_is_consistent(model, inputs_for(model), LAYERS)


class TestReference:
    def test_it_does_not_need_the_model(self, reference):
        model = tiny_llava.model()
        inputs = inputs_for(model)
        with torch.no_grad():
            assert torch.equal(reference.logits, model(**inputs).logits)
        assert reference.inputs.keys() == inputs.keys()
        assert reference.model_class == auto_class(model) == "AutoModelForImageTextToText"
        assert (reference.dtype, reference.device_map) == (torch.float32, {"": "cpu"})
        assert reference.new_tokens > 0
        assert reference_of(model, inputs, LAYERS, generation=False).new_tokens == 0

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
