"""`optimum-cli mllm-recover`, the real script and the command in this process."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from argparse import ArgumentParser
from pathlib import Path

import pytest
import torch
from checkpoint import tiny_llava
from commands.conftest import called
from launching import LAUNCH, TWO, launched
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from optimum_mllm_prune import MLLMPruner, PruningConfig, RecoveryTrainer
from optimum_mllm_prune.checkpoint import Verification, VerificationError
from optimum_mllm_prune.commands.prune import MLLMPruneCommand
from optimum_mllm_prune.commands.recover import EXAMPLES, MLLMRecoverCommand
from optimum_mllm_prune.commands.recover_flags import TRAINING
from optimum_mllm_prune.recovery import recover as recovering
from optimum_mllm_prune.recovery import result


PROGRAM = "optimum-cli mllm-recover"
SCRIPT = Path(sysconfig.get_path("scripts")) / "optimum-cli"
TOKEN = "hf_secretsecretsecret"
QUICK = ("--max-steps", "2", "--per-device-train-batch-size", "4", "--logging-steps", "1", "--device", "cpu")


@pytest.fixture(scope="session")
def pruned(tmp_path_factory):
    """A pruned checkpoint: two of its eight layers and no verification, which is tested elsewhere."""
    made = MLLMPruner(tiny_llava.model(), tiny_llava.processor())
    made.prune(PruningConfig(num_layers=2, importance="magnitude"))
    return save_pruned(made, tmp_path_factory.mktemp("pruned") / "tiny-pruned")


def save_pruned(made, folder):
    made.save_pretrained(folder)
    card = folder / "README.md"
    card.write_text(card.read_text().replace("## Limits", "## By hand\n\nWritten by somebody.\n\n## Limits"))
    return folder


@pytest.fixture
def command(capsys, cwd):
    """Run the command on words in this process."""
    return lambda *words: called(MLLMRecoverCommand, PROGRAM, words, capsys)


@pytest.fixture
def refused(command, cwd):
    """Run the command on wrong input; gives the one line, after checking that nothing was written."""

    def run(*words):
        before = tiny_llava.tree(cwd)
        done = command(*words)
        assert tiny_llava.tree(cwd) == before
        assert done.code == 2, done.err
        assert done.lines[-1].startswith(f"{PROGRAM}: error: "), done.err
        return done.lines[-1].removeprefix(f"{PROGRAM}: error: ")

    return run


@pytest.fixture
def unverified(monkeypatch):
    """Spare the fresh process where the test is about something else."""
    found = Verification(0.0, [], [], True, 0.0, True, "image + text", "LlavaForConditionalGeneration")
    monkeypatch.setattr(result, "verify", lambda *_, **__: found)


def script(*words, folder, launcher=(SCRIPT, "mllm-recover")):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    return [*map(str, launcher), *map(str, words)], {"cwd": folder, "env": environment}


def report_of(folder):
    return json.loads((folder / "pruning_report.json").read_text())


class TestScript:
    """One run of the real script."""

    @pytest.fixture(scope="class")
    def done(self, pruned, llava, rows, tmp_path_factory):
        folder = tmp_path_factory.mktemp("recovered")
        words, options = script(
            "--model", pruned, folder / "better", "--teacher", llava, "--dataset", rows, "--fraction", "0.75",
            "--token", TOKEN, "--keep-adapter", *QUICK, folder=folder,
        )  # fmt: skip
        return subprocess.run(words, **options, capture_output=True, text=True), folder / "better"

    def test_it_ends_well(self, done):
        assert done[0].returncode == 0, done[0].stderr
        assert "Traceback" not in done[0].stderr
        assert TOKEN not in done[0].stdout + done[0].stderr

    def test_the_summary(self, done):
        out = done[0].stdout
        assert re.search(r"^loss +\d+\.\d{4} +\d+\.\d{4}$", out, re.MULTILINE)
        assert re.search(r"^loss_hidden +\d+\.\d{4} +\d+\.\d{4}$", out, re.MULTILINE)
        assert "9 of 12 rows" in out
        assert out.splitlines()[-1] == f"verified in a fresh process; checkpoint: {done[1]}"

    def test_what_is_written(self, done):
        assert [path.name for path in done[1].parent.iterdir()] == ["better"]
        names = {str(path.relative_to(done[1])) for path in done[1].rglob("*") if path.is_file()}
        assert names >= {
            "README.md",
            "adapter/adapter_config.json",
            "adapter/adapter_model.safetensors",
            "config.json",
            "model.safetensors",
            "pruning_config.json",
            "pruning_plan.json",
            "pruning_report.json",
            "pruning_scores.safetensors",
            "recovery_loss.png",
        }
        assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl"))]

    def test_it_is_a_plain_checkpoint_with_other_weights(self, done, pruned):
        model, found = AutoModelForImageTextToText.from_pretrained(done[1], output_loading_info=True)
        assert not any(found.values())
        before = load_file(pruned / "model.safetensors")
        after = load_file(done[1] / "model.safetensors")
        assert before.keys() == after.keys()
        same = {name for name in before if torch.equal(before[name], after[name])}
        assert all("vision_tower" not in name for name in before.keys() - same)
        assert any("q_proj" in name for name in before.keys() - same)
        assert any("projector" in name for name in before.keys() - same)
        assert {tensor.dtype for tensor in after.values()} == {model.dtype}

    def test_the_report(self, done, rows, llava):
        report = report_of(done[1])
        assert report["verification"]["max_abs_logit_difference"] == 0.0
        assert report["verification"]["without_package"] is True
        assert report["parameters"]["before"] > report["parameters"]["after"]
        recovery = report["recovery"]
        assert (recovery["rows"], recovery["rows_available"], recovery["seed"]) == (9, 12, 42)
        assert (recovery["teacher"], recovery["dataset"]) == (llava.name, rows.name)
        assert recovery["weights"] == {"sft": 0.5, "hidden": 0.5}
        assert recovery["first"].keys() == recovery["last"].keys() == {"loss", "loss_sft", "loss_hidden"}
        assert 0 < recovery["trained_parameters"] < recovery["all_parameters"]

    def test_the_card_is_updated_and_not_rewritten(self, done, pruned):
        before, after = ((folder / "README.md").read_text() for folder in (pruned, done[1]))
        assert "# better\n" in after
        assert "No training has followed the pruning." in before
        assert "No training has followed the pruning." not in after
        assert "## By hand\n\nWritten by somebody.\n" in after
        assert "sft+hidden" in after
        assert "![Terms of the loss by optimiser step](recovery_loss.png)" in after
        assert after.count("## Recovery") == after.count("## Verification") == 1
        assert not re.search(r"\bNone\b|\{\{|\}\}|\{%|%\}|Undefined|\bnan\b", after)
        tags = after.split("---")[1]
        assert "- recovered" in tags
        assert "- knowledge-distillation" in tags

    def test_no_token_and_no_local_path_is_written(self, done, llava, rows, pruned):
        for name, text in _texts(done[1]).items():
            assert TOKEN not in text, name
            for path in (done[1], llava, rows, pruned):
                assert str(path.parent) not in text, name

    def test_it_can_be_recovered_again(self, done, llava, rows, command, unverified, cwd):
        again = command("--model", done[1], "again", "--teacher", llava, "--dataset", rows, "--loss", "kd", *QUICK)
        assert again.code == 0, again.err
        assert "`kd`" in (cwd / "again" / "README.md").read_text()
        assert (cwd / "again" / "README.md").read_text().count("## Recovery") == 1


def _texts(folder):
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix not in (".safetensors", ".png"):
            found[path.name] = path.read_text(encoding="utf-8")
    return found


class TestWays:
    def test_without_a_teacher(self, command, pruned, rows, cwd, unverified):
        done = command("--model", pruned, "out", "--dataset", rows, "--loss", "sft", "--train", "projector", *QUICK)
        assert done.code == 0, done.err
        recovery = report_of(cwd / "out")["recovery"]
        assert (recovery["teacher"], recovery["train"]) == (None, "projector")

    def test_layers_by_the_plan(self, command, pruned, llava, rows, cwd, unverified):
        words = ("--loss", "sft=0.5,layers=0.5", "--train", "full", "--set", "learning_rate=1e-3")
        done = command("--model", pruned, "out", "--teacher", llava, "--dataset", rows, *words, *QUICK)
        assert done.code == 0, done.err
        assert report_of(cwd / "out")["recovery"]["last"].keys() == {"loss", "loss_sft", "loss_layers"}

    def test_from_a_cache(self, command, pruned, llava, rows, cwd, unverified):
        words = ("--model", pruned, "--dataset", rows, "--loss", "sft+hidden+kd", "--teacher-cache", "cache", *QUICK)
        done = command(*words, "one", "--teacher", llava, "--top-k", "8")
        assert done.code == 0, done.err
        assert "The teacher cache takes" in done.out
        assert report_of(cwd / "one")["recovery"]["cached"] is True
        # The teacher itself is not needed any more: its weights may be gone.
        (cwd / "bare").mkdir()
        shutil.copy(llava / "config.json", cwd / "bare")
        again = command(*words, "two", "--teacher", "bare", "--top-k", "8")
        assert again.code == 0, again.err
        first, second = (load_file(cwd / name / "model.safetensors") for name in ("one", "two"))
        assert all(torch.equal(first[key], second[key]) for key in first)
        wrong = command(*words, "three", "--teacher", "bare", "--top-k", "9")
        assert wrong.lines[-1].endswith(
            "the cache 'cache' holds 8 logits a token, not 9: leave top_k out, or name another folder."
        )
        wrong = command(*words, "three", "--teacher", "bare", "--teacher-dtype", "float16")
        assert wrong.lines[-1].endswith(
            "the cache 'cache' was written with teacher_dtype float32, not float16: leave it out, or name "
            "another folder."
        )
        wrong = command(*words, "three", "--teacher", "bare", "--teacher-quantization", "8bit")
        assert wrong.lines[-1].endswith(
            "the cache 'cache' was written with teacher_quantization left out, not 8bit: leave it out, or name "
            "another folder."
        )
        wrong = command(*words, "three", "--teacher", "bare", "--eval-dataset", tiny_llava.save_rows(cwd / "others"))
        assert wrong.lines[-1].endswith(
            "a cache holds what the teacher said of the rows to train on alone: leave the held-out rows out, or keep "
            "the teacher in memory."
        )

    def test_a_teacher_in_eight_bits(self, command, pruned, llava, rows, cwd, unverified):
        words = ("--model", pruned, "out", "--teacher", llava, "--teacher-quantization", "8bit", "--dataset", rows)
        assert command(*words, *QUICK).code == 0
        assert report_of(cwd / "out")["recovery"]["teacher"] == llava.name

    def test_a_cache_of_a_teacher_in_eight_bits(self, command, pruned, llava, rows, cwd, unverified):
        words = ("--model", pruned, "--teacher", llava, "--dataset", rows, "--teacher-cache", "cache", *QUICK)
        for output in ("one", "two"):
            done = command(*words, output, "--teacher-quantization", "8bit")
            assert done.code == 0, done.err
        assert json.loads((cwd / "cache" / "index.json").read_text())["quantization"] == "8bit"

    def test_held_out_rows_are_evaluated_without_further_flags(self, command, pruned, rows, cwd, unverified):
        words = ("--eval-dataset", tiny_llava.save_rows(cwd / "others"), "--loss", "sft")
        done = command("--model", pruned, "out", "--dataset", rows, *words, *QUICK)
        assert done.code == 0, done.err
        assert done.out.count("'eval_loss'") == 1

    def test_held_out_rows(self, command, pruned, rows, cwd, unverified):
        tiny_llava.save_rows(cwd / "others")
        words = ("--eval-dataset", "others", "--loss", "sft", "--set", "eval_strategy=steps", "eval_steps=1")
        done = command("--model", pruned, "out", "--dataset", rows, *words, *QUICK)
        assert done.code == 0, done.err
        assert "eval_loss" in done.out

    def test_a_sixteen_bit_checkpoint_trains_in_float32_and_stays_what_it_was(self, command, rows, cwd, unverified):
        made = MLLMPruner(tiny_llava.model().bfloat16(), tiny_llava.processor())
        made.prune(PruningConfig(num_layers=2, importance="magnitude"))
        made.save_pretrained(cwd / "half")
        done = command("--model", "half", "out", "--dataset", rows, "--loss", "sft", *QUICK)
        assert done.code == 0, done.err
        dtypes = {tensor.dtype for tensor in load_file(cwd / "out" / "model.safetensors").values()}
        assert dtypes == {torch.bfloat16}
        assert "16 bits" not in done.err

    @pytest.mark.slow
    def test_two_processes(self, pruned, llava, rows, tmp_path):
        words = ["--model", pruned, "out", "--teacher", llava, "--dataset", rows, *QUICK]
        done = launched([*LAUNCH, *TWO, "-m", "optimum_mllm_prune.commands.recover", *words], tmp_path)
        recovery = report_of(tmp_path / "out")["recovery"]
        assert (recovery["processes"], recovery["batch_size"]) == (2, 8)
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        assert done.stdout.count("verified in a fresh process") == 1


class TestBrokenOff:
    @pytest.mark.slow
    def test_killed_and_run_again(self, pruned, llava, rows, tmp_path):
        """SIGKILL in mid-epoch; the same command again ends with the weights of an undisturbed run."""
        words = ["--model", pruned, "--teacher", llava, "--dataset", rows, "--num-train-epochs", "8"]
        words += ["--per-device-train-batch-size", "2", "--save-steps", "1", "--logging-steps", "1", "--device", "cpu"]
        call, options = script(*words, "whole", folder=tmp_path)
        assert subprocess.run(call, **options, capture_output=True).returncode == 0
        call, options = script(*words, "out", folder=tmp_path)
        running = subprocess.Popen(call, **options, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        training = tmp_path / "out.training"
        while not list(training.glob("checkpoint-*/trainer_state.json")):
            assert running.poll() is None
            time.sleep(0.05)
        running.send_signal(signal.SIGKILL)
        running.wait()
        assert training.is_dir()
        assert not (tmp_path / "out").exists()
        done = subprocess.run(call, **options, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert not training.exists()
        first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
        assert all(torch.equal(first[key], second[key]) for key in first)

    def test_other_settings_are_refused(self, command, pruned, rows, cwd, unverified, monkeypatch):
        words = ("--model", pruned, "out", "--dataset", rows, "--loss", "sft", *QUICK)
        monkeypatch.setattr(result, "verify", _raising(KeyboardInterrupt()))
        assert command(*words).code == 130
        assert (cwd / "out.training").is_dir()
        assert not (cwd / "out").exists()
        done = command(*words, "--seed", "7")
        assert done.code == 2
        assert done.lines[-1].endswith(
            "out.training' holds a broken-off training of other settings: finish that one, or delete the folder."
        )

    @pytest.mark.parametrize(
        ("error", "code", "line"),
        [
            (KeyboardInterrupt(), 130, "interrupted; {kept}"),
            (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 2,
             "the disk is full: free some room or choose another folder; {kept}"),
            (VerificationError("the logits differ by 0.5"), 1, "the logits differ by 0.5; {kept}"),
        ],
        ids=["Ctrl-C", "disk full", "verification"],
    )  # fmt: skip
    def test_what_is_kept_is_told(self, command, pruned, rows, cwd, unverified, monkeypatch, error, code, line):
        """After the last step everything is in the checkpoints, so that the same command need not train again."""
        words = ("--model", pruned, "out", "--dataset", rows, "--loss", "sft", *QUICK)
        monkeypatch.setattr(result, "verify", _raising(error))
        kept = "the checkpoints in 'out.training' are kept: the same command goes on from there"
        done = command(*words)
        assert (done.code, done.lines[-1]) == (code, f"{PROGRAM}: error: {line.format(kept=kept)}")
        assert list((cwd / "out.training").glob("checkpoint-*"))

    def test_nothing_is_kept_before_the_first_checkpoint(self, command, pruned, rows, cwd, monkeypatch):
        monkeypatch.setattr(RecoveryTrainer, "train", _raising(KeyboardInterrupt()))
        words = ("--model", pruned, "out", "--dataset", rows, "--loss", "sft", *QUICK)
        done = command(*words)
        assert (done.code, done.lines[-1]) == (130, f"{PROGRAM}: error: interrupted; nothing was kept")
        assert list(cwd.iterdir()) == []

    def test_a_cache_that_is_kept_is_told(self, command, pruned, llava, rows, cwd, monkeypatch):
        monkeypatch.setattr(RecoveryTrainer, "train", _raising(KeyboardInterrupt()))
        words = ("--model", pruned, "out", "--teacher", llava, "--dataset", rows, "--teacher-cache", "cache", *QUICK)
        done = command(*words)
        kept = "the teacher cache 'cache' is kept: the same command goes on from there"
        assert (done.code, done.lines[-1]) == (130, f"{PROGRAM}: error: interrupted; {kept}")
        assert [path.name for path in cwd.iterdir()] == ["cache"]

    def test_out_of_memory(self, refused, pruned, rows, monkeypatch):
        monkeypatch.setattr(RecoveryTrainer, "train", _raising(MemoryError()))
        assert refused("--model", pruned, "out", "--dataset", rows, "--loss", "sft", *QUICK) == (
            "out of memory: lower --per-device-train-batch-size (and raise --gradient-accumulation-steps), add "
            "--activation-checkpointing or --bf16, choose --train lora or projector, store what the teacher says with "
            "--teacher-cache, or use another --device"
        )


def _raising(error):
    def stage(*_, **__):
        raise error

    return stage


class TestBadInput:
    def test_not_a_pruned_folder(self, refused, llava, rows):
        assert refused("--model", llava, "--dataset", rows) == (
            f"'{llava}' is no pruned checkpoint, it holds no pruning_plan.json: prune the model first, with "
            "mllm-prune."
        )

    def test_no_such_model(self, refused, rows):
        line = refused("--model", "no-such/model", "--dataset", rows)
        assert line.startswith("no model 'no-such/model': it is neither a local folder nor reachable on the Hub (")

    def test_the_plan_names_no_teacher(self, refused, pruned, rows):
        assert refused("--model", pruned, "--dataset", rows) == (
            "the pruning plan names no base model, as it was a local one: name the unpruned model with --teacher."
        )

    def test_a_teacher_with_another_tokenizer(self, refused, pruned, llava, rows, tmp_path_factory):
        other = tmp_path_factory.mktemp("other") / "llava"
        shutil.copytree(llava, other)
        tokens = json.loads((other / "tokenizer.json").read_text())
        vocabulary = tokens["model"]["vocab"]
        first, second = list(vocabulary)[-2:]
        vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
        (other / "tokenizer.json").write_text(json.dumps(tokens))
        assert refused("--model", pruned, "--teacher", other, "--dataset", rows, "--loss", "kd") == (
            "the teacher's tokenizer gives other tokens than the student's: logits cannot be compared; give the model "
            "that the student was pruned from."
        )

    def test_layers_of_another_teacher(self, refused, pruned, rows):
        assert refused("--model", pruned, "--teacher", pruned, "--dataset", rows, "--loss", "layers=1") == (
            f"'{pruned}' is not the model that this one was pruned from, so layers cannot be matched: give that one, "
            "or leave out the loss term 'layers'."
        )

    def test_rows_without_answers(self, refused, pruned, cwd):
        (cwd / "rows.jsonl").write_text('{"messages": [{"role": "user", "content": "Hello?"}]}\n')
        line = refused("--model", pruned, "--dataset", "rows.jsonl", "--loss", "sft", "--device", "cpu")
        assert line == "Row 0 has no assistant answer; add one or take the row out."

    def test_the_output_exists(self, refused, pruned, rows, cwd):
        (cwd / "out").mkdir()
        (cwd / "out" / "mine").write_text("")
        line = refused("--model", pruned, "out", "--dataset", rows)
        assert line == "'out' exists already: name another folder, or add --overwrite to replace it."

    def test_the_output_holds_the_cache(self, refused, pruned, rows, cwd):
        (cwd / "out" / "cache").mkdir(parents=True)
        line = refused("--model", pruned, "out", "--dataset", rows, "--overwrite", "--teacher-cache", "out/cache")
        assert line == "'out' holds 'out/cache', which this run reads: name another folder."

    @pytest.mark.parametrize(
        ("words", "line"),
        [
            (["--dtype", "int8"], "unknown dtype 'int8': use one of auto, float32, bfloat16, float16."),
            (["--eval-split", "test"],
             "--eval-split is only used with --eval-dataset: add it, or leave --eval-split out."),
            (["--top-k", "5"], "--top-k is only used with --teacher-cache: add it, or leave --top-k out."),
            (["--top-k", "0", "--teacher-cache", "c"], "--top-k must be at least 1, got 0."),
            (["--keep-adapter", "--train", "full"],
             "--keep-adapter has no effect without --train lora: leave it out."),
            (["--keep-adapter", "--set", "train=full"],
             "--keep-adapter has no effect without --train lora: leave it out."),
            (["--lora-r", "4", "--train", "projector"],
             "--lora-r has no effect without --train lora: leave it out."),
            (["--lora-dropout", "0", "--train", "full"],
             "--lora-dropout has no effect without --train lora: leave it out."),
            (["--temperature", "3"], "--temperature has no effect without the loss term 'logits': leave it out."),
            (["--top-k", "5", "--teacher-cache", "c"],
             "--top-k has no effect without the loss term 'logits': leave it out."),
            (["--jsd-beta", "0.3", "--loss", "kd"],
             "--jsd-beta has no effect without --divergence jsd: leave it out."),
            (["--hidden-tokens", "all", "--loss", "kd"],
             "--hidden-tokens has no effect without the loss term 'hidden' or 'layers': leave it out."),
            (["--stratify-by", "kind"],
             "--stratify-by has no effect without --fraction or --max-samples: leave it out."),
            (["--num-train-epochs", "2", "--max-steps", "3"],
             "--num-train-epochs has no effect beside --max-steps: leave it out."),
            (["--teacher-cache", "no/../NAME-recovered/c"],
             "the teacher cache 'no/../NAME-recovered/c' would be lost with 'NAME-recovered', which this run "
             "replaces: name another folder."),
            (["--teacher-cache", "NAME-recovered.training"],
             "the teacher cache 'NAME-recovered.training' would be lost with 'NAME-recovered.training', which this "
             "run replaces: name another folder."),
            (["--teacher-cache", "c", "--loss", "layers=1"],
             "a cache holds no intermediate layers: leave out the loss term 'layers', or the cache."),
            (["--fraction", "0"], "fraction must lie in (0, 1] (0.05 takes 5 % of the rows), got 0.0."),
            (["--max-samples", "0"], "max_samples must be at least 1, got 0."),
            (["--stratify-by", "colour", "--loss", "sft", "--fraction", "0.5"],
             "The dataset has no column 'colour' in every row; name one that it has."),
            (["--teacher-cache", "c", "--loss", "sft"],
             "this loss looks at no teacher: leave out all that is said of one."),
            (["--teacher", "t", "--loss", "sft"],
             "this loss looks at no teacher: leave out all that is said of one."),
            (["--push-to-hub"], "--push-to-hub needs --repo-id, the repository to push to (me/my-model)."),
            (["--set", "sed=1"], "there is no training argument 'sed': did you mean 'seed'?"),
        ],
    )  # fmt: skip
    def test_flags(self, refused, pruned, rows, words, line):
        own, line = (each.replace("NAME", pruned.name) for each in (" ".join(words), line))
        assert refused("--model", pruned, "--dataset", rows, *own.split()) == line

    @pytest.mark.parametrize("words", [[], ["--eval-split", "train"], ["--dataset-split", "train"]])
    def test_the_held_out_rows_are_those_trained_on(self, refused, pruned, rows, words):
        line = refused("--model", pruned, "--dataset", rows, "--eval-dataset", rows, *words)
        assert line == "--eval-dataset is what is trained on: name other rows, or another --eval-split."

    def test_the_output_is_the_folder_one_is_in(self, refused, pruned, rows):
        line = refused("--model", pruned, ".", "--dataset", rows, "--loss", "sft")
        assert line == "'.' holds the folder you are in, which cannot be replaced: name another folder."

    def test_nothing_is_loaded_for_a_teacher_without_a_name(self, refused, pruned, rows, monkeypatch):
        monkeypatch.setattr(recovering, "_load_student", _raising(AssertionError("loaded")))
        line = refused("--model", pruned, "--dataset", rows)
        assert line.startswith("the pruning plan names no base model, as it was a local one: ")

    def test_the_weights_have_grown_too_large(self, command, pruned, rows, cwd, unverified):
        words = ("--loss", "sft", "--learning-rate", "1e30", "--set", "warmup_steps=0", "--train", "full")
        done = command("--model", pruned, "out", "--dataset", rows, *words, *QUICK[2:], "--max-steps", "1")
        assert (done.code, done.lines[-1]) == (
            2,
            f"{PROGRAM}: error: the trained model's logits are not numbers: delete the training's folder, and lower "
            "the learning rate or train in bfloat16 or float32.",
        )
        assert not (cwd / "out").exists()

    def test_the_loss_is_no_number(self, command, pruned, rows, cwd):
        words = ("--loss", "sft", "--learning-rate", "1e30", "--set", "max_grad_norm=0", "--max-steps", "9")
        done = command("--model", pruned, "out", "--dataset", rows, *words, "--device", "cpu", "--train", "full")
        assert done.code == 2
        assert re.search(
            r"error: the loss is (nan|inf) at step \d: lower the learning rate \(now 1e\+30\) or train in bfloat16 or "
            r"float32; checkpoints up to here are kept\.$",
            done.lines[-1],
        )
        assert not (cwd / "out").exists()


class TestHelp:
    @pytest.fixture
    def parser(self):
        made = ArgumentParser(PROGRAM)
        MLLMRecoverCommand.parse_args(made)
        return made

    def test_of_the_script(self):
        done = subprocess.run([SCRIPT, "mllm-recover", "--help"], capture_output=True, text=True)
        assert done.returncode == 0
        for heading in ("what to recover:", "losses:", "what trains:", "training:", "loading:", "hub:", "examples:"):
            assert f"\n{heading}" in done.stdout
        assert "5 % of the rows" in done.stdout

    def test_the_examples_are_understood(self, parser):
        lines = re.findall(r"^    optimum-cli mllm-recover (.+)$", EXAMPLES, re.MULTILINE)
        assert len(lines) == 4
        for line in lines:
            assert parser.parse_args(line.split()).dataset == "my_rows"

    def test_every_flag_explains_itself(self, parser):
        for action in parser._actions:
            assert action.help, action.option_strings

    def test_training_flags_are_silent_unless_given(self, parser):
        args = parser.parse_args(["--model", "m", "--dataset", "d"])
        assert {getattr(args, name) for name in TRAINING} == {None}

    def test_as_a_module(self):
        done = subprocess.run(
            [sys.executable, "-m", "optimum_mllm_prune.commands.recover", "--help"], capture_output=True, text=True
        )
        assert done.returncode == 0
        assert done.stdout.startswith("usage: mllm-recover")


class TestOneGo:
    """`mllm-prune --recover`."""

    WAY = ("--importance", "magnitude_l2", "--recover", "projector", "--device", "cpu")
    SHORT = ("--recover-set", "max_steps=2", "loss=sft+kd", "per_device_train_batch_size=4")

    @pytest.mark.slow
    def test_both_steps(self, llava, rows, tmp_path):
        words = ("mllm-prune", "--model", llava, "out", "--recover-dataset", rows, *self.WAY, *self.SHORT)
        call, options = script(*words, folder=tmp_path, launcher=(SCRIPT,))
        done = subprocess.run(call, **options, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        report = report_of(tmp_path / "out")
        assert report["recovery"]["train"] == "projector"
        assert report["recovery"]["teacher"] == llava.name
        assert report["ratio"]["achieved"] > 0.1
        assert report["recovery"]["command"].startswith("optimum-cli mllm-prune --model tiny-llava out")

    @pytest.mark.slow
    def test_broken_off_between_the_steps(self, llava, rows, tmp_path):
        words = ("mllm-prune", "--model", llava, "out", "--recover-dataset", rows, *self.WAY, *self.SHORT)
        call, options = script(*words, folder=tmp_path, launcher=(SCRIPT,))
        running = subprocess.Popen(call, **options, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not (tmp_path / "out.pruned").exists():
            assert running.poll() is None
            time.sleep(0.05)
        running.send_signal(signal.SIGKILL)
        running.wait()
        done = subprocess.run(call, **options, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "Pruned already, in out.pruned: going on with the recovery." in done.stdout
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    @pytest.mark.parametrize(
        ("words", "line"),
        [
            (["--recover-set", "seed=1"],
             "--recover-set is only used with --recover: add it, or leave --recover-set out."),
            (["--recover", "lora"],
             "--recover needs rows to train on: name them with --dataset or --recover-dataset."),
            (["--recover", "lora", "--recover-dataset", "d", "--recover-set", "los=sft"],
             "there is no training argument 'los': did you mean 'loss'?"),
            (["--recover", "lora", "--dry-run"], "--dry-run writes no model: leave --recover out."),
        ],
    )  # fmt: skip
    def test_bad_input(self, llava, cwd, capsys, words, line):
        words = ("--model", llava, "out", "--importance", "magnitude_l2", *words)
        done = called(MLLMPruneCommand, "optimum-cli mllm-prune", words, capsys)
        assert (done.code, done.lines[-1]) == (2, f"optimum-cli mllm-prune: error: {line}")
        assert list(cwd.iterdir()) == []
