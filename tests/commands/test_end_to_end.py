"""The command does what it says; the real `optimum-cli` where that is the point."""

import json
import os
import shutil
import stat
import subprocess
import sysconfig
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from checkpoint import tiny_llava
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from optimum_mllm_prune.commands.prune_rows import DEFAULT_DATASET
from optimum_mllm_prune.commands.prune_run import _output


PROGRAM = Path(sysconfig.get_path("scripts")) / "optimum-cli"
TOKEN = "hf_secretsecretsecret"
BY_WEIGHTS = ("--importance", "magnitude_l2")
BEFORE = 2_660_672
BACKBONE_BEFORE = 2_337_440
# What llava-hf/llava-1.5-7b-hf says of itself, without what leaves the sizes alone.
LLAVA_7B = {
    "architectures": ["LlavaForConditionalGeneration"],
    "image_token_index": 32000,
    "model_type": "llava",
    "text_config": {
        "model_type": "llama",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-05,
        "vocab_size": 32064,
    },
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "vision_config": {
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}


def optimum_cli(*words, folder):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [PROGRAM, "mllm-prune", *map(str, words)], capture_output=True, text=True, cwd=folder, env=environment
    )


def report_of(folder):
    return json.loads((folder / "pruning_report.json").read_text())


def plan_of(folder):
    return json.loads((folder / "pruning_plan.json").read_text())


def text_config(folder):
    return json.loads((folder / "config.json").read_text())["text_config"]


@pytest.fixture(scope="module")
def run(llava, rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("script")
    words = ["--model", llava, folder / "new" / "smaller", "--ratio", "0.2", "--dataset", rows]
    done = optimum_cli(*words, "--num_samples", "6", "--token", TOKEN, folder=folder)
    return done, folder / "new" / "smaller"


class TestScript:
    """One run of the real script, by width, with data."""

    def test_it_ends_well(self, run):
        done, _ = run
        assert done.returncode == 0, done.stderr
        assert "Calibrating" in done.stderr
        assert "Traceback" not in done.stderr

    def test_the_summary(self, run):
        out = run[0].stdout
        assert f"parameters         {BEFORE:,}" in out
        assert f"language backbone  {BACKBONE_BEFORE:,}" in out
        assert "(asked for 20.00 %)" in out
        assert "largest logit difference 0, 0 missing and 0 unexpected keys, generation with and without cache" in out
        assert out.splitlines()[-1] == f"checkpoint: {run[1]}"

    def test_nothing_else_is_left(self, run):
        assert [path.name for path in run[1].parent.iterdir()] == ["smaller"]
        assert sorted(path.name for path in run[1].iterdir()) == [
            "README.md",
            "chat_template.jinja",
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "processor_config.json",
            "pruning_config.json",
            "pruning_importance.png",
            "pruning_plan.json",
            "pruning_report.json",
            "pruning_scores.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        ]

    def test_others_may_read_it(self, run):
        mask = os.umask(0)
        os.umask(mask)
        assert stat.S_IMODE(run[1].stat().st_mode) == 0o777 & ~mask
        assert {stat.S_IMODE(path.stat().st_mode) for path in run[1].iterdir()} == {0o666 & ~mask}

    def test_the_report(self, run, rows):
        report = report_of(run[1])
        assert 0 <= report["verification"].pop("cache_logit_difference") < 1e-3
        assert report["parameters"]["before"] == BEFORE
        assert report["parameters"]["backbone_before"] == BACKBONE_BEFORE
        assert report["ratio"]["requested"] == 0.2
        assert abs(report["ratio"]["achieved"] - 0.2) < 0.01
        assert report["verification"] == {
            "max_abs_logit_difference": 0.0,
            "missing_keys": [],
            "unexpected_keys": [],
            "generated_tokens_equal": True,
            "without_package": True,
            "inputs": "image + text",
            "model_class": "LlavaForConditionalGeneration",
        }
        calibration = report["calibration"]
        assert calibration["dataset"] == rows.name
        assert (calibration["samples"], calibration["seed"], calibration["importance"]) == (6, 42, "reconstruction")
        assert calibration["tokens"]["image"] == 6 * 16
        assert calibration["tokens"].keys() == {"image", "prompt", "answer"}

    def test_it_loads_and_answers(self, run):
        model, found = AutoModelForImageTextToText.from_pretrained(run[1], output_loading_info=True)
        assert not any(found.values())
        assert sum(p.numel() for p in model.parameters()) == report_of(run[1])["parameters"]["after"]
        text = "Describe the image."
        turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
        processor = AutoProcessor.from_pretrained(run[1])
        prompt = processor.apply_chat_template(turns, add_generation_prompt=True)
        inputs = processor(text=prompt, images=tiny_llava.rows()[0]["images"], return_tensors="pt")
        assert model.generate(**inputs, max_new_tokens=3, do_sample=False).shape[1] > inputs["input_ids"].shape[1]

    def test_the_scores(self, run):
        scores = load_file(run[1] / "pruning_scores.safetensors")
        shapes = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in scores.items()}
        plain = {name: found for name, found in shapes.items() if "." not in name}
        assert plain == {
            "layers": (torch.float32, (tiny_llava.LAYERS,)),
            "heads": (torch.float32, (tiny_llava.LAYERS, tiny_llava.KV_HEADS)),
            "channels": (torch.float32, (tiny_llava.LAYERS, tiny_llava.CHANNELS)),
        }
        # Of layers alone, as errors are of all tokens together: sums by modality.
        by_modality = (torch.float64, (tiny_llava.LAYERS, 3))
        assert {name: shapes[name] for name in shapes.keys() - plain.keys()} == {
            "layers.total": by_modality,
            "layers.tokens": by_modality,
        }
        assert all(tensor.isfinite().all() for tensor in scores.values())

    def test_no_token_and_no_local_path_is_written(self, run, llava, rows):
        texts = tiny_llava.written_text(run[1])
        assert {"README.md", "config.json", "model.safetensors", "pruning_plan.json"} <= texts.keys()
        for name, text in texts.items():
            assert TOKEN not in text, name
            for path in (run[1], llava, rows):
                assert str(path.parent) not in text, name
            assert str(Path.home()) + "/" not in text, name
        command = "optimum-cli mllm-prune --model tiny-llava smaller --ratio 0.2 --dataset digit-rows --num-samples 6"
        assert plan_of(run[1])["command"] == command
        assert command in texts["README.md"]
        assert TOKEN not in run[0].stdout + run[0].stderr


class TestWrongInputInTheScript:
    def test_one_line_and_no_loading_report(self, llava, tmp_path):
        weights = load_file(llava / "model.safetensors")
        weights.pop(next(name for name in weights if name.endswith("layers.0.mlp.up_proj.weight")))
        tiny_llava.processor().save_pretrained(tmp_path / "damaged")
        (tmp_path / "damaged" / "config.json").write_text((llava / "config.json").read_text())
        save_file(weights, tmp_path / "damaged" / "model.safetensors", metadata={"format": "pt"})
        before = tiny_llava.tree(tmp_path)
        done = optimum_cli("--model", "damaged", *BY_WEIGHTS, folder=tmp_path)
        assert done.returncode == 2
        assert done.stdout == ""
        said = [
            line for line in done.stderr.replace("\r", "\n").splitlines() if line and "Loading weights" not in line
        ]
        assert said == [
            "optimum-cli mllm-prune: error: the checkpoint 'damaged' lacks 1 of the model's weights (first: "
            "model.language_model.layers.0.mlp.up_proj.weight); loaded so, they would be random."
        ]
        assert tiny_llava.tree(tmp_path) == before


class TestLayers:
    def test_with_data(self, command, llava, rows, cwd):
        done = command("--model", llava, "out", "--num_layers", "3", "--dataset", rows, "--num-samples", "4")
        assert done.code == 0, done.err
        plan, report = plan_of(cwd / "out"), report_of(cwd / "out")
        assert (plan["method"], plan["importance"], len(plan["removed_layers"])) == ("layer", "block_influence", 3)
        assert text_config(cwd / "out")["num_hidden_layers"] == tiny_llava.LAYERS - 3
        assert report["verification"]["max_abs_logit_difference"] == 0.0
        assert report["calibration"]["samples"] == 4
        scores = load_file(cwd / "out" / "pruning_scores.safetensors")["layers"]
        assert sorted(scores.argsort()[:3].tolist()) == plan["removed_layers"]

    @pytest.mark.parametrize("importance", ["angular", "loss", "merge"])
    def test_in_sequence(self, command, llava, rows, cwd, importance):
        """The plan, its scores, and the same plan from those scores."""
        words = ["--num-layers", "3", "--importance", importance, "--dry-run"]
        done = command("--model", llava, "out", *words, "--dataset", rows, "--num-samples", "3")
        assert done.code == 0, done.err
        removed = plan_of(cwd / "out")["removed_layers"]
        scores = load_file(cwd / "out" / "pruning_scores.safetensors")
        if importance == "angular":
            runs = scores["layer_runs"][: tiny_llava.LAYERS - 2, 2]
            assert removed == [runs.argmin() + i for i in range(3)]
        else:
            assert removed == sorted(scores["layers"].argsort()[:3].tolist())
        assert {"heads", "channels"} < scores.keys()
        assert command("--model", llava, "again", *words, "--scores", "out").code == 0
        assert plan_of(cwd / "again")["removed_layers"] == removed

    def test_protected(self, command, llava, cwd):
        words = ["--method", "layer", "--importance", "magnitude", "--num-layers", "2", "--dry-run"]
        assert command("--model", llava, "free", *words).code == 0
        removed = plan_of(cwd / "free")["removed_layers"]
        assert command("--model", llava, "held", *words, "--protect-layers", *removed).code == 0
        assert not set(removed) & set(plan_of(cwd / "held")["removed_layers"])


class TestDryRun:
    @pytest.fixture
    def llava_7b(self, cwd):
        (cwd / "llava-1.5-7b-hf").mkdir()
        (cwd / "llava-1.5-7b-hf" / "config.json").write_text(json.dumps(LLAVA_7B))
        return "llava-1.5-7b-hf"

    def test_sizes_from_a_config_alone(self, llava_7b, cwd):
        before = tiny_llava.tree(cwd)
        done = optimum_cli("--model", llava_7b, "--dry-run", "--num-layers", "5", folder=cwd)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[1].split() == ["parameters", "7,063,427,072", "6,051,510,272", "85.7", "%"]
        assert "Nothing was written." in done.stdout
        assert tiny_llava.tree(cwd) == before

    def test_sizes_alone_do_not_mind_what_is_there(self, command, llava, cwd):
        (cwd / "tiny-llava-pruned").mkdir()
        (cwd / "tiny-llava-pruned" / "thesis.txt").write_text("not to be lost")
        before = tiny_llava.tree(cwd)
        assert command("--model", llava, "--dry-run").code == 0
        assert tiny_llava.tree(cwd) == before

    def test_sizes_by_width(self, command, llava_7b, cwd):
        before = tiny_llava.tree(cwd)
        done = command("--model", llava_7b, "--dry_run", "--ratio", "0.3")
        assert done.code == 0, done.err
        removed = float(done.out.partition("backbone removed: ")[2].partition(" %")[0])
        assert abs(removed - 30) < 1
        assert tiny_llava.tree(cwd) == before

    def test_target_params(self, command, llava):
        done = command("--model", llava, "--dry-run", "--target-params", "2M")
        assert done.code == 0, done.err
        line = next(line for line in done.out.splitlines() if line.startswith("parameters"))
        after = int(line.split()[2].replace(",", ""))
        assert abs(after - 2e6) < 0.01 * BACKBONE_BEFORE

    @pytest.mark.parametrize("data", [True, False])
    def test_plan_and_scores_and_no_model(self, command, llava, rows, cwd, data):
        words = ["--dataset", rows, "--num-samples", "3"] if data else BY_WEIGHTS
        done = command("--model", llava, "dry", *words, "--dry-run")
        assert done.code == 0, done.err
        assert sorted(path.name for path in (cwd / "dry").iterdir()) == [
            "pruning_config.json",
            "pruning_plan.json",
            "pruning_scores.safetensors",
        ]
        assert "carry the plan out with --plan dry" in done.out
        for name, text in tiny_llava.written_text(cwd / "dry").items():
            assert str(rows.parent) not in text, name
            assert str(llava.parent) not in text, name


@pytest.mark.usefixtures("unverified")
class TestReplay:
    @pytest.fixture
    def dry(self, command, llava, rows, cwd):
        words = ["--dataset", rows, "--num-samples", "4", "--importance", "taylor_group"]
        assert command("--model", llava, "dry", *words, "--ratio", "0.3", "--dry-run").code == 0
        return plan_of(cwd / "dry")

    @pytest.mark.parametrize("given", ["dry", "dry/pruning_plan.json"])
    def test_a_plan_is_carried_out(self, command, llava, dry, cwd, given):
        done = command("--model", llava, "out", "--plan", given)
        assert done.code == 0, done.err
        assert "Calibrating" not in done.err
        carried = plan_of(cwd / "out")
        assert carried.pop("command") != dry.pop("command")
        assert carried == dry
        assert report_of(cwd / "out")["parameters"] == dry["parameters"]
        saved = load_file(cwd / "out" / "pruning_scores.safetensors")
        original = load_file(cwd / "dry" / "pruning_scores.safetensors")
        assert all(torch.equal(saved[name], tensor) for name, tensor in original.items())
        card = (cwd / "out" / "README.md").read_text()
        assert "The scores come from an earlier calibration on `digit-rows`." in card
        assert "No calibration data was used" not in card

    def test_scores_serve_other_weights_of_tokens(self, command, llava, rows, dry, cwd):
        words = ["--importance", "taylor_group", "--ratio", "0.3", "--dry-run"]
        weights = ["--modality_weights", "image=0.5, answer=4"]
        again = command("--model", llava, "again", "--scores", "dry", *words, *weights)
        assert again.code == 0, again.err
        assert "Calibrating" not in again.err
        fresh = ["--dataset", rows, "--num-samples", "4", *words, *weights]
        assert command("--model", llava, "fresh", *fresh).code == 0
        one, other = plan_of(cwd / "again"), plan_of(cwd / "fresh")
        assert one["config"]["modality_weights"] == {"image": 0.5, "prompt": 1.0, "answer": 4.0}
        assert one["notes"][-1] == "weights of tokens: image 0.5, prompt 1, answer 4"
        assert one["scores"] == other["scores"] != dry["scores"]
        assert one["removed_channels"] == other["removed_channels"] != dry["removed_channels"]
        assert "--modality-weights 'image=0.5, answer=4'" in one["command"]

    def test_scores_that_are_not_the_plans_stay_behind(self, command, llava, dry, cwd):
        assert command("--model", llava, "other", *BY_WEIGHTS, "--dry-run").code == 0
        (cwd / "dry" / "pruning_scores.safetensors").unlink()
        (cwd / "other" / "pruning_scores.safetensors").rename(cwd / "dry" / "pruning_scores.safetensors")
        assert command("--model", llava, "out", "--plan", "dry").code == 0
        assert not (cwd / "out" / "pruning_scores.safetensors").exists()
        assert "pruning_scores" not in (cwd / "out" / "README.md").read_text()

    def test_an_edited_plan_is_carried_out_with_its_own_figures(self, command, llava, dry, cwd):
        edited = plan_of(cwd / "dry")
        for units in edited["removed_channels"].values():
            del units[8:]
        (cwd / "edited.json").write_text(json.dumps(edited))
        done = command("--model", llava, "out", "--plan", "edited.json")
        assert done.code == 0, done.err
        carried, report = plan_of(cwd / "out"), report_of(cwd / "out")
        width = text_config(cwd / "out")["intermediate_size"]
        assert carried["config_changes"]["intermediate_size"] == width > dry["config_changes"]["intermediate_size"]
        assert carried["notes"] == report["notes"] == ["edited by hand: sizes worked out anew"]
        assert carried["parameters"] == report["parameters"]
        stored = sum(
            tensor.numel() for file in (cwd / "out").glob("model*.safetensors") for tensor in load_file(file).values()
        )
        assert report["parameters"]["after"] == stored
        assert carried["ratio"]["achieved"] < dry["ratio"]["achieved"]

    def test_scores_stand_for_a_calibration(self, refused, llava, rows, dry):
        line = refused("--model", llava, "out", "--scores", "dry", "--num-samples", "3")
        assert line == "--scores stands for an earlier calibration: leave --num-samples out."

    def test_without_a_repair_no_row_is_read(self, refused, llava, rows, dry):
        line = refused("--model", llava, "out", "--scores", "dry", "--repair", "none", "--dataset", rows)
        assert line == "nothing is scored and nothing repaired, so no row is read: leave --dataset out."

    @pytest.mark.parametrize("earlier", ["--scores", "--plan"])
    def test_rows_repair_what_an_earlier_plan_cuts(self, command, llava, rows, cwd, dry, earlier):
        more = ("--importance", "taylor_group") if earlier == "--scores" else ()
        done = command("--model", llava, "out", earlier, "dry", "--dataset", rows, *more)
        assert done.code == 0, done.err
        assert "linear maps refitted on 12 rows" in done.out

    def test_scores_give_another_ratio(self, command, llava, rows, dry, cwd):
        words = ["--importance", "taylor_group", "--ratio", "0.5"]
        done = command("--model", llava, "out", "--scores", "dry", *words)
        assert done.code == 0, done.err
        assert "Calibrating" not in done.err
        replanned = plan_of(cwd / "out")
        assert replanned["scores"] == dry["scores"]
        assert replanned["ratio"]["achieved"] > dry["ratio"]["achieved"] + 0.15
        # The same as from a calibration of its own.
        again = command("--model", llava, "again", "--dataset", rows, "--num-samples", "4", *words, "--dry-run")
        assert again.code == 0, again.err
        for key in ("removed_heads", "removed_channels", "parameters", "scores"):
            assert plan_of(cwd / "again")[key] == replanned[key]
        for name, units in dry["removed_channels"].items():
            assert set(units) < set(replanned["removed_channels"][name])


@pytest.mark.usefixtures("unverified")
class TestOutput:
    def test_code_from_the_repository_is_not_run(self, command, llava, cwd):
        shutil.copytree(llava, cwd / "own")
        config = json.loads((cwd / "own" / "config.json").read_text())
        names = {"AutoConfig": "own.OwnConfig", "AutoModelForImageTextToText": "own.OwnModel"}
        (cwd / "own" / "config.json").write_text(json.dumps(config | {"auto_map": names}))
        tokenizer = json.loads((cwd / "own" / "tokenizer_config.json").read_text())
        tokenizer |= {"auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}
        (cwd / "own" / "tokenizer_config.json").write_text(json.dumps(tokenizer))
        (cwd / "own" / "own.py").write_text("raise RuntimeError('code from the repository was run')\n")
        done = command("--model", "own", "out", *BY_WEIGHTS, "--trust-remote-code")
        assert done.code == 0, done.err
        assert "--trust-remote-code: no code from the model's repository is run" in done.out
        for name, text in tiny_llava.written_text(cwd / "out").items():
            assert "auto_map" not in text, name

    def test_default_name(self, command, llava, cwd):
        done = command("--model", llava, *BY_WEIGHTS)
        assert done.code == 0, done.err
        assert [path.name for path in cwd.iterdir()] == ["tiny-llava-pruned"]
        assert abs(report_of(cwd / "tiny-llava-pruned")["ratio"]["requested"] - 0.15) < 1e-9

    def test_default_name_of_the_current_folder(self, llava, monkeypatch):
        monkeypatch.chdir(llava)
        assert _output(Namespace(model=".", output=None)) == Path("tiny-llava-pruned")
        assert _output(Namespace(model="llava-hf/llava-1.5-7b-hf", output=None)) == Path("llava-1.5-7b-hf-pruned")

    def test_overwrite_replaces_all(self, command, llava, cwd):
        (cwd / "out").mkdir()
        (cwd / "out" / "old.txt").write_text("of an earlier run")
        done = command("--model", llava, "out", *BY_WEIGHTS, "--overwrite")
        assert done.code == 0, done.err
        assert [path.name for path in cwd.iterdir()] == ["out"]
        assert not (cwd / "out" / "old.txt").exists()
        assert (cwd / "out" / "model.safetensors").is_file()

    def test_an_empty_folder_is_filled(self, command, llava, cwd):
        (cwd / "out").mkdir()
        assert command("--model", llava, "out", *BY_WEIGHTS).code == 0
        assert (cwd / "out" / "model.safetensors").is_file()

    @pytest.mark.parametrize("flag", ["--no-twin", "--no_twin"])
    def test_no_twin(self, command, llava, cwd, flag):
        assert command("--model", llava, "free", *BY_WEIGHTS, "--ratio", "0.3").code == 0
        assert text_config(cwd / "free")["model_type"] == plan_of(cwd / "free")["twin"] == "mistral"
        assert command("--model", llava, "held", *BY_WEIGHTS, "--ratio", "0.3", flag).code == 0
        assert text_config(cwd / "held")["model_type"] == "llama"
        assert plan_of(cwd / "held")["twin"] is None
        assert abs(report_of(cwd / "held")["ratio"]["achieved"] - 0.3) < 0.01

    def test_query_heads(self, command, llava, cwd):
        done = command("--model", llava, "out", *BY_WEIGHTS, "--ratio", "0.4", "--head-unit", "query")
        assert done.code == 0, done.err
        plan = plan_of(cwd / "out")
        assert plan["head_unit"] == "query"
        assert text_config(cwd / "out")["num_key_value_heads"] == tiny_llava.KV_HEADS
        assert text_config(cwd / "out")["num_attention_heads"] < tiny_llava.HEADS

    def test_bfloat16(self, command, llava, cwd):
        assert command("--model", llava, "out", *BY_WEIGHTS, "--dtype", "bfloat16").code == 0
        weights = load_file(cwd / "out" / "model.safetensors")
        assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
        size = report_of(cwd / "out")["size_bytes"]
        assert size["before"] == 2 * BEFORE

    def test_channel_multiple(self, command, llava, cwd):
        assert command("--model", llava, "out", *BY_WEIGHTS, "--channel-multiple", "32", "--dry-run").code == 0
        assert plan_of(cwd / "out")["config_changes"]["intermediate_size"] % 32 == 0

    def test_the_seed_decides(self, command, llava, cwd):
        for name, seed in (("one", 1), ("same", 1), ("other", 2)):
            words = ["--importance", "random", "--seed", seed, "--ratio", "0.3", "--dry-run"]
            assert command("--model", llava, name, *words).code == 0
        one, same, other = (plan_of(cwd / name)["removed_channels"] for name in ("one", "same", "other"))
        assert one == same != other


@pytest.mark.usefixtures("unverified")
def test_model_alone_takes_the_default_set(command, llava, cwd, monkeypatch):
    def fetch(name, split, count, seed):
        assert (name, split, seed) == (DEFAULT_DATASET, None, 42)
        return [tiny_llava.rows()[i] for i in range(min(count, 12))]

    monkeypatch.setattr("optimum_mllm_prune.commands.prune_rows.load_rows", fetch)
    done = command("--model", llava)
    assert done.code == 0, done.err
    report = report_of(cwd / "tiny-llava-pruned")
    assert report["calibration"]["dataset"] == DEFAULT_DATASET
    assert report["calibration"]["samples"] == 12
    assert plan_of(cwd / "tiny-llava-pruned")["importance"] == "reconstruction"
