"""An evaluation is written into a finished checkpoint, and nothing else changes."""

import json
import os

import pytest
from checkpoint.evaluations import COMMAND, METRICS, evaluation
from huggingface_hub import EvalResult, ModelCard
from PIL import Image

from optimum_mllm_prune import UserInputError
from optimum_mllm_prune.checkpoint import Verification
from optimum_mllm_prune.checkpoint.evaluated import add_evaluation, eval_results, has_evaluation
from optimum_mllm_prune.checkpoint.recovered import read_card, read_report, update_report, updated_card
from optimum_mllm_prune.checkpoint.sections import section_of


CARD = """---
license: mit
tags:
- pruning
mine: yes
model-index:
- name: my name
  results:
  - task:
      type: image-text-to-text
    dataset:
      name: Theirs
      type: their/rows
    metrics:
    - type: exact_match
      value: 12
---

# small

## By hand

Written by somebody.

## Evaluation

Neither quality nor speed has been measured yet.

## Verification

checked
"""
RECORD = {
    "loss": "sft", "weights": {"sft": 1.0}, "settings": {}, "train": "full", "trained_parameters": 5,
    "all_parameters": 5, "teacher": None, "cached": False, "dataset": "me/rows", "rows": 4, "rows_available": 4,
    "stratify_by": None, "seed": 42, "epochs": 1.0, "steps": 1, "batch_size": 4, "processes": 1,
    "learning_rate": 1e-3, "projector_learning_rate": None, "first": {}, "last": {}, "seconds": 1.0, "command": None,
    "versions": {"torch": "2"},
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "README.md").write_text(CARD)
    (folder / "pruning_report.json").write_text('{"parameters": {"before": 2}, "notes": ["ä"]}')
    return folder


@pytest.fixture
def picture(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "quality_and_size.png")
    return tmp_path / "quality_and_size.png"


def results(folder):
    return ModelCard.load(folder / "README.md").data.eval_results


def test_all_files_are_there(folder, picture):
    add_evaluation(folder, evaluation(), [picture])
    made = json.loads((folder / "evaluation.json").read_text())
    assert made == evaluation()
    assert read_report(folder) == {"parameters": {"before": 2}, "notes": ["ä"], "evaluation": made}
    assert (folder / picture.name).read_bytes() == picture.read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "evaluation.json", "pruning_report.json", "quality_and_size.png",
    ]  # fmt: skip


def test_the_rest_of_the_card_stays(folder, picture):
    add_evaluation(folder, evaluation(), [picture])
    text = read_card(folder)
    assert "## By hand\n\nWritten by somebody.\n\n## Evaluation\n\n" in text
    assert text.endswith("\n\n## Verification\n\nchecked\n")
    assert "has been measured yet" not in text
    assert "![Quality and size](quality_and_size.png)" in section_of(text, "Evaluation")
    data = ModelCard.load(folder / "README.md").data
    assert (data.license, data.tags, data["mine"], data.model_name) == ("mit", ["pruning"], True, "my name")


def test_quality(folder):
    add_evaluation(folder, evaluation())
    text = section_of(read_card(folder), "Evaluation")
    assert "On 4 rows of `me/rows`, split `test`, drawn with seed 42." in text
    assert "| metric | rows | original | this checkpoint | retained | p |" in text
    assert "| exact_match (%) | 4 | 100.0 (100.0-100.0) | 50.0 (0.0-100.0) | 50.0 % (0.0-100.0) | 0.5 |" in text
    assert "| answer_perplexity (less is better) | 4 | 1.55 (" in text
    assert "| yes_no_f1: accuracy |  |  | 50.00 |  |  |" in text
    assert "| token_agreement (%) | 4 | - | " in text
    assert "By `kind`, original → this checkpoint:" in text
    assert r"| a \| b | 2 | 100.0 → 50.0 (0.0-100.0) |" in text
    assert r"| \<i>x | 2 |" in text


def test_efficiency(folder):
    add_evaluation(folder, evaluation())
    text = section_of(read_card(folder), "Evaluation")
    assert "|  | original | this checkpoint | times better | at best |" in text
    assert "| parameters | 3,000,000 | 2,100,000 | 1.43 |  |" in text
    assert "| first token, 1 row (ms) | 10.0 (9.0-20.0) | 7.0 (6.3-14.0) | 1.43 (1.43) | 1.43 |" in text
    assert "| decoding, 1 row (tokens/s) | 300.0 (250.0-320.0) | 428.6 (357.1-457.1) | 1.43 (1.43) | 1.3" in text
    assert "| memory, loaded (MB) | 6.0 | 4.2 | 1.43 |  |" in text
    assert "| cache, each token (kB) | 5.1 | 5.1 | 1.00 |  |" in text
    assert "on cpu, bfloat16, 1 thread." in text
    assert "top of a process without the model" in text
    assert "- small: Memory did not suffice for 8 rows at once." in text


def test_benchmarks(folder):
    add_evaluation(folder, evaluation())
    assert "| mmmu_val | acc,none | 900 | 0.5 ± 0.02 | 0.4 | 80.0 % |" in section_of(read_card(folder), "Evaluation")


def test_without_another_model(folder):
    add_evaluation(folder, evaluation(baseline=None))
    text = section_of(read_card(folder), "Evaluation")
    assert "Measured on its own, beside no other model." in text
    assert "| exact_match (%) | 4 | 50.0 (0.0-100.0) |" in text
    assert r"| a \| b | 2 | 50.0 (0.0-100.0) |" in text
    assert "| parameters | 2,100,000 |" in text
    assert "| mmmu_val | acc,none | 900 | 0.4 |" in text
    assert not any(word in text for word in ("original", "etained", "at best"))


@pytest.mark.parametrize("part", ["quality", "efficiency", "tasks"])
def test_parts_alone(folder, part):
    add_evaluation(folder, evaluation(**{name: name == part for name in ("quality", "efficiency", "tasks")}))
    text = section_of(read_card(folder), "Evaluation")
    headings = {"quality": "### Quality", "efficiency": "### Efficiency", "tasks": "### Benchmarks"}
    assert [heading for heading in headings.values() if heading in text] == [headings[part]]
    assert len(results(folder)) > 1


def test_what_is_not_known_is_a_dash(folder):
    made = evaluation()
    score = made["quality"][0]
    score["retained"] = {"value": None, "low": None, "high": None, "confidence": 0.95}
    score["value"] |= {"low": None, "high": None}
    made["tasks"]["baseline"] = [made["tasks"]["baseline"][0] | {"task": "another"}]
    add_evaluation(folder, made)
    text = section_of(read_card(folder), "Evaluation")
    assert "| exact_match (%) | 4 | 100.0 (100.0-100.0) | 50.0 | - | 0.5 |" in text
    assert "| mmmu_val | acc,none | 900 | - | 0.4 | - |" in text


class TestMetadata:
    def test_results_go_through_the_card_and_back(self, folder):
        add_evaluation(folder, evaluation())
        theirs, *ours = results(folder)
        assert (theirs.dataset_name, theirs.metric_value) == ("Theirs", 12)
        assert ours == list(eval_results(evaluation()))
        assert all(isinstance(result, EvalResult) for result in ours)
        found = {(result.dataset_type, result.metric_type): result.metric_value for result in ours}
        assert {("me/rows", metric) for metric in METRICS} <= found.keys()
        assert found["me/rows", "exact_match"] == found["me/rows", "exact_match_retained"] == 50
        assert found["mmmu_val", "acc,none"] == 0.4
        assert found["made-up-prompts", "decode_tokens_per_second"] == 428.57

    def test_where_less_is_better_no_share_is_told(self):
        assert "answer_perplexity_retained" not in {result.metric_type for result in eval_results(evaluation())}

    def test_later_ones_take_the_place_of_earlier_ones(self, folder):
        add_evaluation(folder, evaluation())
        add_evaluation(folder, evaluation(quality=False, command="another"))
        assert {result.dataset_type for result in results(folder)} == {"their/rows", "mmmu_val", "made-up-prompts"}
        add_evaluation(folder, evaluation(tasks=False, efficiency=False))
        assert {result.dataset_type for result in results(folder)} == {"their/rows", "me/rows"}

    def test_twice_is_once(self, folder):
        add_evaluation(folder, evaluation())
        once = read_card(folder)
        add_evaluation(folder, evaluation())
        assert read_card(folder) == once


class TestFolder:
    def test_without_card_and_report_they_begin(self, tmp_path):
        (tmp_path / "bare").mkdir()
        add_evaluation(tmp_path / "bare", evaluation())
        assert read_card(tmp_path / "bare").startswith("---\nmodel-index:\n- name: bare\n")
        assert "\n# bare\n\n## Evaluation\n\n" in read_card(tmp_path / "bare")
        assert read_report(tmp_path / "bare").keys() == {"evaluation"}

    def test_no_token_and_no_local_path_is_written(self, folder):
        token, path = "hf_" + "a1" * 17, "/home/secretuser/rows"
        made = evaluation(command=f"{COMMAND} --dataset {path} --token {token}", baseline=path, model=path)
        made["dataset"]["name"] = path
        add_evaluation(folder, made)
        for file in folder.iterdir():
            assert token not in file.read_text()
            assert "secretuser" not in file.read_text()
        assert has_evaluation(folder, f"{COMMAND} --dataset {path} --token {token}")

    def test_links_are_replaced_and_not_followed(self, folder, tmp_path):
        kept = tmp_path / "blob"
        (folder / "README.md").rename(kept)
        (folder / "README.md").symlink_to(kept)
        add_evaluation(folder, evaluation())
        assert kept.read_text() == CARD
        assert has_evaluation(folder, COMMAND)

    @pytest.mark.parametrize("writes", range(4))
    def test_an_interruption_leaves_whole_files(self, folder, picture, monkeypatch, writes):
        add_evaluation(folder, evaluation(command="earlier"))
        real, done = os.replace, []

        def replace(source, target):
            if len(done) == writes:
                raise KeyboardInterrupt
            done.append(target.name)
            real(source, target)

        monkeypatch.setattr(os, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            add_evaluation(folder, evaluation(), [picture])
        monkeypatch.undo()
        assert done == ["evaluation.json", "quality_and_size.png", "pruning_report.json"][:writes]
        assert not list(folder.glob(".*"))
        assert json.loads((folder / "evaluation.json").read_text())
        assert len(results(folder)) == 1 + len(list(eval_results(evaluation())))
        assert not has_evaluation(folder, COMMAND)
        add_evaluation(folder, evaluation(), [picture])
        assert has_evaluation(folder, COMMAND)

    def test_has_evaluation(self, folder, tmp_path):
        assert not has_evaluation(folder, COMMAND)
        assert not has_evaluation(tmp_path / "nowhere", COMMAND)
        add_evaluation(folder, evaluation())
        assert has_evaluation(folder, COMMAND)
        assert not has_evaluation(folder, COMMAND + " --seed 1")

    @pytest.mark.parametrize(("text", "told"), [("{", "is not JSON (Expecting"), ("[]", "is no JSON object")])
    def test_a_report_that_cannot_be_read(self, folder, text, told):
        (folder / "pruning_report.json").write_text(text)
        for use in (lambda: add_evaluation(folder, evaluation()), lambda: has_evaluation(folder, COMMAND)):
            with pytest.raises(UserInputError) as error:
                use()
            assert str(error.value).startswith(f"the report 'pruning_report.json' {told}")
            assert str(error.value).endswith(": mend or remove it.")
        assert read_card(folder) == CARD

    @pytest.mark.parametrize("head", ["tags: [a", "- a list", "model-index:\n- name: x"])
    def test_metadata_that_cannot_be_read(self, folder, head):
        (folder / "README.md").write_text(f"---\n{head}\n---\n\n# small\n")
        with pytest.raises(UserInputError) as error:
            add_evaluation(folder, evaluation())
        assert str(error.value).startswith("the metadata at the top of the card of 'small' cannot be read (")
        assert str(error.value).endswith("): mend the card.")
        assert not (folder / "evaluation.json").exists()


def test_a_recovery_takes_the_evaluation_away(folder, tmp_path):
    add_evaluation(folder, evaluation())
    checked = Verification(0.0, [], [], True, 1e-7, True, "image + text", "LlavaForConditionalGeneration")
    card = updated_card(read_card(folder), "better", RECORD, checked, None)
    assert section_of(card.text, "Evaluation") == (
        "## Evaluation\n\nNeither quality nor speed has been measured since the recovery.\n\n"
    )
    assert "model-index" not in str(card)
    assert "## By hand\n\nWritten by somebody.\n" in card.text
    update_report(read_report(folder), RECORD, checked, tmp_path)
    assert read_report(tmp_path).keys() == {"parameters", "notes", "verification", "recovery"}
