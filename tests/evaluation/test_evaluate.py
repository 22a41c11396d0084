"""A whole evaluation as one function: what is refused before any weight is loaded, and what is loaded at all."""

import shutil
from pathlib import Path

import pytest
import scenes
from transformers import AutoProcessor

from optimum_mllm_prune.errors import UserInputError
from optimum_mllm_prune.evaluation import evaluate as evaluation
from optimum_mllm_prune.evaluation import harnesses
from optimum_mllm_prune.evaluation.evaluate import evaluate
from optimum_mllm_prune.evaluation.job import EfficiencyJob, EvaluationJob, TasksJob


DIGITS = Path(__file__).parents[2] / "examples" / "digit_scenes" / "llava"


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows") / "scenes"
    test = scenes.build(train=1, test=120, seed=3)["test"]
    test.add_column("number", list(range(len(test)))).save_to_disk(folder)
    return str(folder)


@pytest.fixture(scope="module")
def other_tokens(tmp_path_factory):
    """The same model, with a word more in its vocabulary."""
    folder = tmp_path_factory.mktemp("models") / "llava"
    shutil.copytree(DIGITS, folder)
    processor = AutoProcessor.from_pretrained(DIGITS)
    processor.tokenizer.add_tokens(["seventeen"])
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def refused(monkeypatch):
    """Evaluate what is wrong; gives the one line, after checking that no model was loaded."""
    loads = []
    monkeypatch.setattr(evaluation, "load_model", lambda *_, **__: loads.append(1))

    def run(**job):
        with pytest.raises(UserInputError) as error:
            evaluate(EvaluationJob(**{"model": str(DIGITS), "device": "cpu", **job}))
        assert not loads
        return str(error.value)

    return run


def test_other_tokenizers_are_not_compared_by_tokens(refused, other_tokens, rows):
    assert refused(dataset=rows, baseline=other_tokens) == (
        "the two tokenizers give other tokens, which answer_perplexity and token_agreement count: name other metrics, "
        "such as exact_match, or leave the baseline out."
    )


def test_other_tokenizers_are_compared_by_texts(other_tokens, rows):
    job = EvaluationJob(str(DIGITS), other_tokens, rows, num_samples=2, metrics=("exact_match",), device="cpu")
    assert evaluate(job).quality[0].baseline.value == 100


def test_answers_that_do_not_suit_a_metric(refused, rows):
    assert refused(dataset=rows, metrics=("exact_match", "yes_no_f1")) == (
        "The references of row 0 are not all yes or all no: choose another metric than yes_no_f1."
    )


@pytest.mark.parametrize("column", ["number", "messages"])
def test_a_column_without_categories(refused, rows, column):
    assert refused(dataset=rows, by=column) == (
        f"The column '{column}' holds no categories: name one of texts or numbers, at most 100 of them."
    )


def test_a_harness_that_is_not_installed(refused, rows, monkeypatch):
    monkeypatch.setattr(harnesses, "find_spec", lambda _: None)
    assert refused(dataset=rows, tasks=TasksJob(("mmmu_val",))) == (
        "lm-eval is not installed: pip install 'optimum-mllm-prune[eval]'."
    )


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: EfficiencyJob(batch_sizes=(1, 0)), "batch_sizes must be at least 1, got 1, 0."),
        (lambda: EfficiencyJob(batch_sizes=()), "batch_sizes must be at least 1, got none."),
        (lambda: EfficiencyJob(new_tokens=1), "new_tokens must be at least 2, got 1."),
        (lambda: EfficiencyJob(repeats=0), "repeats must be at least 1, got 0."),
        (lambda: TasksJob(()), "no task is named: name at least one."),
        (lambda: TasksJob(("t",), limit=0), "limit must be at least 1, got 0."),
        (lambda: TasksJob(("t",), harness="other"), "unknown harness 'other': use one of lm-eval, lmms-eval."),
        (lambda: TasksJob(("t",), folder=Path("none")),
         "there is no folder 'none' with task files: name another."),
        (lambda: EvaluationJob("m", tasks=TasksJob(("t",)), device_map="auto"),
         "device_map is not handed over with tasks: name a device, or measure them without."),
    ],
)  # fmt: skip
def test_wrong_numbers_and_names_are_told_when_the_job_is_made(make, line):
    with pytest.raises(UserInputError) as error:
        make()
    assert str(error.value) == line


def test_benchmarks_alone_load_no_local_model(monkeypatch):
    asked = []
    monkeypatch.setattr(evaluation, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    monkeypatch.setattr(evaluation, "run_tasks", lambda folder, names, **_: asked.append((folder, names)) or [])
    evaluate(EvaluationJob(str(DIGITS), tasks=TasksJob(("digit_scenes",))))
    assert asked == [(str(DIGITS), ("digit_scenes",))]
