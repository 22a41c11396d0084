"""`optimum-cli mllm-eval`, the real script and the command in this process."""

import json
import os
import subprocess
import sysconfig
from argparse import ArgumentParser
from pathlib import Path

import pytest
import scenes
from checkpoint import tiny_llava
from commands.conftest import called
from launching import LAUNCH, TWO, launched
from PIL import Image

from optimum_mllm_prune import MLLMPruner, PruningConfig
from optimum_mllm_prune.commands import eval_run
from optimum_mllm_prune.commands.eval import EXAMPLES, MLLMEvalCommand
from optimum_mllm_prune.evaluation import exact_match, generate_answers, reference_answers


PROGRAM = "optimum-cli mllm-eval"
SCRIPT = Path(sysconfig.get_path("scripts")) / "optimum-cli"
ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "examples" / "digit_scenes" / "llava"


@pytest.fixture(scope="module")
def digit_rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "scenes"
    scenes.build(train=1, test=28, seed=3).save_to_disk(folder)
    return folder


@pytest.fixture(scope="module")
def smaller(tmp_path_factory):
    """Digit scenes, half of the backbone gone, so that it is worse."""
    pruner = MLLMPruner.from_pretrained(str(DIGITS), device="cpu")
    pruner.prune(PruningConfig(method="width", ratio=0.5, importance="magnitude_l2"))
    pruner.save_pretrained(tmp_path_factory.mktemp("models") / "smaller")
    return tmp_path_factory.getbasetemp() / next(tmp_path_factory.getbasetemp().glob("models*/smaller"))


@pytest.fixture
def command(capsys, cwd):
    """Run the command on words in this process."""
    return lambda *words: called(MLLMEvalCommand, PROGRAM, words, capsys)


@pytest.fixture
def refused(command, cwd):
    """Run the command on wrong input; gives the one line, after checking that nothing was written."""

    def run(*words, code=2):
        before = tiny_llava.tree(cwd)
        done = command(*words)
        assert tiny_llava.tree(cwd) == before
        assert done.code == code, done.err
        assert done.lines[-1].startswith(f"{PROGRAM}: error: "), done.err
        return done.lines[-1].removeprefix(f"{PROGRAM}: error: ")

    return run


def environment(**more):
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **more}


def figures(folder):
    return json.loads((folder / "evaluation.json").read_text())


def accuracy(pruner, rows):
    return exact_match(generate_answers(pruner.model, pruner.processor, rows), reference_answers(rows))


@pytest.mark.slow
class TestScript:
    """One run of the real script with all that it can measure."""

    @pytest.fixture(scope="class")
    def done(self, digit_rows, smaller, tmp_path_factory):
        folder = tmp_path_factory.mktemp("eval")
        words = [SCRIPT, "mllm-eval", "--model", smaller, "found", "--baseline", DIGITS, "--device", "cpu"]
        words += ["--dataset", digit_rows, "--dataset-split", "test", "--by", "kind", "--efficiency"]
        words += ["--efficiency-batch-sizes", "1", "--efficiency-tokens", "4", "--efficiency-repeats", "1"]
        words += ["--tasks", "digit_scenes", "--tasks-folder", ROOT / "examples" / "lm_eval", "--update-card"]
        run = subprocess.run(
            [str(word) for word in words],
            cwd=folder, env=environment(DIGIT_SCENES=str(digit_rows)), capture_output=True, text=True,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        return run, folder / "found"

    def test_quality_is_that_of_the_answers(self, done, digit_rows, smaller):
        rows = scenes.build(train=1, test=28, seed=3)["test"]
        own, other = (MLLMPruner.from_pretrained(str(path), device="cpu") for path in (smaller, DIGITS))
        scores = {score["metric"]: score for score in figures(done[1])["quality"]}
        assert list(scores) == ["exact_match", "answer_perplexity", "token_agreement"]
        score = scores["exact_match"]
        before, after = accuracy(other, rows), accuracy(own, rows)
        assert (score["value"]["value"], score["baseline"]["value"]) == pytest.approx((after, before))
        assert score["retained"]["value"] == pytest.approx(100 * after / before)
        assert score["rows"] == sum(group["rows"] for group in score["groups"].values()) == 28
        assert set(score["groups"]) == set(rows["kind"])

    def test_lm_eval_says_the_same(self, done):
        report = figures(done[1])
        ours = next(score for score in report["quality"] if score["metric"] == "exact_match")
        for role, value in (("model", ours["value"]["value"]), ("baseline", ours["baseline"]["value"])):
            (score,) = report["tasks"][role]
            assert 100 * score["value"] == pytest.approx(value)

    def test_efficiency_is_side_by_side(self, done):
        found = figures(done[1])["efficiency"]
        assert list(found) == ["baseline", "model"]
        assert found["model"]["size"]["parameters"] < found["baseline"]["size"]["parameters"]
        assert set(found["model"]["speedup"]["1"]) == {"prefill", "decode"}
        assert found["model"]["memory"]["loaded"] > 0

    def test_what_is_left(self, done, digit_rows, smaller):
        _, folder = done
        assert [path.name for path in folder.parent.iterdir()] == ["found"]
        names = ["categories.png", "evaluation.json", "memory.png", "quality_and_size.png"]
        assert sorted(path.name for path in folder.iterdir()) == names
        for name in names[::2]:
            with Image.open(folder / name) if name.endswith("png") else (folder / name).open():
                text = (folder / "evaluation.json").read_text()
        assert str(digit_rows.parent) not in text and str(DIGITS.parent) not in text
        report = figures(folder)
        assert (report["model"], report["baseline"], report["dataset"]["name"]) == ("smaller", "llava", "scenes")
        assert report["command"].startswith("optimum-cli mllm-eval --model smaller found --baseline llava")

    def test_tables_on_the_screen(self, done):
        out = done[0].stdout
        for words in ("exact_match", "retained", "  compare", "digit_scenes", "parameters", "speed-up of prefill"):
            assert words in out
        assert "Report and pictures: found" in out

    def test_the_card_tells_of_it(self, done, smaller):
        card = (smaller / "README.md").read_text()
        assert "## Evaluation" in card and "exact_match" in card and "![Categories](categories.png)" in card
        assert (smaller / "categories.png").is_file()
        assert "evaluation" in json.loads((smaller / "pruning_report.json").read_text())


class TestWays:
    def test_alone_with_named_metrics(self, command, digit_rows, cwd):
        words = ("--model", DIGITS, "--dataset", digit_rows, "--dataset-split", "test", "--num-samples", "4")
        done = command(*words, "--metrics", "anls", "vqa_accuracy", "--device", "cpu")
        assert done.code == 0, done.err
        report = figures(cwd / "llava-evaluation")
        assert [score["metric"] for score in report["quality"]] == ["anls", "vqa_accuracy"]
        assert all(score["baseline"] is None for score in report["quality"])
        assert report["dataset"] == {"name": "scenes", "split": "test", "rows": 4, "seed": 42, "by": None}

    @pytest.mark.slow
    def test_two_processes_find_what_one_does(self, command, digit_rows, cwd):
        words = ["--model", DIGITS, "--dataset", digit_rows, "--dataset-split", "test", "--batch-size", "4"]
        assert command(*words, "one", "--device", "cpu").code == 0
        done = launched([*LAUNCH, *TWO, "-m", "optimum_mllm_prune.commands.eval", *words, "two"], cwd)
        one, two = figures(cwd / "one"), figures(cwd / "two")
        assert one["quality"][0] == two["quality"][0]
        assert one["quality"][1]["value"]["value"] == pytest.approx(two["quality"][1]["value"]["value"], rel=1e-6)
        assert done.stdout.count("Report and pictures") == 1

    def test_interrupted(self, refused, digit_rows, monkeypatch):
        def interrupt(_):
            raise KeyboardInterrupt

        monkeypatch.setattr(eval_run, "evaluate", interrupt)
        line = refused("--model", DIGITS, "--dataset", digit_rows, "--device", "cpu", code=130)
        assert line == "interrupted; nothing was kept"

    def test_out_of_memory(self, refused, digit_rows, monkeypatch):
        def fail(_):
            raise MemoryError

        monkeypatch.setattr(eval_run, "evaluate", fail)
        assert refused("--model", DIGITS, "--dataset", digit_rows, "--device", "cpu") == (
            "out of memory: lower --batch-size or --max-new-tokens, leave out --baseline and measure it apart, or use "
            "another --dtype or --device"
        )


WRONG = [
    ((), "nothing is to be measured: add --dataset, --efficiency or --tasks."),
    (("--by", "kind", "--efficiency"), "--by is only used with --dataset: add it, or leave --by out."),
    (("--limit", "3", "--efficiency"), "--limit is only used with --tasks: add it, or leave --limit out."),
    (("--harness", "lmms-eval", "--efficiency"),
     "--harness is only used with --tasks: add it, or leave --harness out."),
    (("--efficiency-tokens", "3", "--tasks", "t"),
     "--efficiency-tokens is only used with --efficiency: add it, or leave --efficiency-tokens out."),
    (("--baseline-revision", "main", "--efficiency"),
     "--baseline-revision is only used with --baseline: add it, or leave --baseline-revision out."),
    (("--dataset", "{rows}", "--metrics", "bleu"),
     "unknown metric 'bleu': use one of exact_match, vqa_accuracy, yes_no_f1, anls, relaxed_accuracy, "
     "answer_perplexity, token_agreement."),
    (("--dataset", "{rows}", "--metrics", "token_agreement"), "token_agreement compares two models: name a baseline."),
    (("--dataset", "{rows}", "--num-samples", "0"), "num_samples must be at least 1, got 0."),
    (("--dataset", "{rows}", "--batch-size", "0"), "batch_size must be at least 1, got 0."),
    (("--dataset", "{rows}", "--dtype", "int8"),
     "unknown dtype 'int8': use one of auto, float32, bfloat16, float16."),
    (("--dataset", "{rows}", "--by", "colour"),
     "The dataset has no column 'colour' in every row; name one that it has."),
    (("--dataset", "{rows}", "--metrics", "yes_no_f1"),
     "The references of row 0 are not all yes or all no: choose another metric than yes_no_f1."),
    (("--efficiency", "--efficiency-tokens", "1"), "new_tokens must be at least 2, got 1."),
]  # fmt: skip


class TestBadInput:
    @pytest.mark.parametrize(("words", "line"), WRONG, ids=lambda value: " ".join(value)[:40])
    def test_flags(self, refused, digit_rows, words, line):
        words = [word.format(rows=digit_rows) for word in words]
        assert refused("--model", DIGITS, *words, "--device", "cpu") == line

    def test_a_card_of_a_model_on_the_hub(self, refused, digit_rows):
        assert refused("--model", "me/it", "--dataset", digit_rows, "--update-card") == (
            "--update-card writes into a local folder, and --model is none: fetch the model first."
        )

    def test_the_output_exists(self, refused, digit_rows, cwd):
        (cwd / "out").mkdir()
        (cwd / "out" / "thesis.txt").write_text("not to be lost")
        line = refused("--model", DIGITS, "out", "--dataset", digit_rows)
        assert "'out'" in line and "--overwrite" in line


def test_the_examples_are_understood():
    parser = ArgumentParser(PROGRAM)
    MLLMEvalCommand.parse_args(parser)
    lines = [line.split("mllm-eval ")[1] for line in EXAMPLES.splitlines() if "optimum-cli mllm-eval" in line]
    assert len(lines) == 6
    for line in lines:
        assert parser.parse_args(line.split()).model == "pruned"
