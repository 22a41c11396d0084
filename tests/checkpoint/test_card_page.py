"""The card as a page, after every stage: complete, nothing left open, every picture beside it."""

import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from checkpoint import tiny_llava
from checkpoint.evaluations import evaluation
from huggingface_hub import ModelCard, ModelCardData
from markdown_it import MarkdownIt
from PIL import Image
from transformers import pipeline

from optimum_mllm_prune import MLLMPruner, PruningConfig, pruner
from optimum_mllm_prune.checkpoint import Verification
from optimum_mllm_prune.checkpoint.evaluated import add_evaluation
from optimum_mllm_prune.checkpoint.sections import ORDER
from optimum_mllm_prune.recovery import result
from optimum_mllm_prune.recovery.job import RecoveryJob
from optimum_mllm_prune.recovery.recover import recover
from optimum_mllm_prune.recovery.settings import recovery_arguments
from optimum_mllm_prune.recovery.training_folder import TrainingFolder


STAGES = ["layer", "width", "width, evaluated", "recovered", "recovered, evaluated"]
COMMAND = "optimum-cli mllm-prune --model me/large small --ratio 0.3"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folder of every stage, by the functions that users call; verification, tested elsewhere, is spared."""
    home = tmp_path_factory.mktemp("stages")
    with pytest.MonkeyPatch.context() as patch:
        for module in (pruner, result):
            patch.setattr(module, "verify", _agree)
        _prune(home / "layer", PruningConfig(num_layers=2, num_samples=3))
        _prune(home / "width", PruningConfig(ratio=0.3, num_samples=3))
        _prune(home / "width, evaluated", PruningConfig(ratio=0.3, importance="magnitude_l2"))
        _evaluate(home / "width, evaluated", home)
        _recover(home / "width, evaluated", home / "recovered", home)
        _recover(home / "width, evaluated", home / "recovered, evaluated", home)
        _evaluate(home / "recovered, evaluated", home)
    return home


def _agree(*_, **__):
    return Verification(0.0, [], [], True, 1e-7, True, "image + text", "LlavaForConditionalGeneration")


def _prune(folder, config):
    made = MLLMPruner(tiny_llava.model(), tiny_llava.processor(), "me/large", "0123abc", "apache-2.0")
    made.prune(replace(made.plan(config, dataset=tiny_llava.rows()), command=COMMAND))
    made.save_pretrained(folder)


def _recover(pruned, output, home):
    teacher = home / "large"
    if not teacher.exists():
        tiny_llava.save_model(teacher)
        tiny_llava.save_rows(home / "rows")
    given = {"max_steps": 2, "logging_steps": 1, "use_cpu": True, "per_device_train_batch_size": 2}
    arguments = recovery_arguments(TrainingFolder(output).path, None, (), given)
    job = RecoveryJob(str(pruned), output, str(home / "rows"), str(teacher), command="optimum-cli mllm-recover")
    recover(job, arguments)


def _evaluate(folder, home):
    picture = home / "quality and_size.png"
    Image.new("RGB", (2, 2)).save(picture)
    add_evaluation(folder, evaluation(), [picture])


@pytest.fixture(params=STAGES)
def folder(folders, request):
    return folders / request.param


def body(folder):
    return ModelCard.load(folder / "README.md").text


def tokens(folder):
    """As the Hub renders it: CommonMark with tables."""
    return MarkdownIt("commonmark").enable("table").parse(body(folder))


def test_every_section_is_filled_and_in_its_place(folder):
    parts = re.split(r"^## (.+)$", body(folder), flags=re.MULTILINE)
    assert tuple(parts[1::2]) == ORDER
    assert all(len(content.strip()) > 30 for content in parts[2::2])
    assert parts[0].strip().startswith(f"# {folder.name}\n")


def test_nothing_is_left_open(folder):
    text = body(folder)
    assert not re.search(r"\bNone\b|\{\{|\}\}|\{%|%\}|Undefined|\b[nN]a[nN]\b|\binf\b|True|False\b(?!\))", text)
    assert "\n\n\n" not in text
    assert not [line for line in text.splitlines() if line != line.rstrip()]


def test_every_picture_lies_beside_the_card(folder):
    inline = [child for token in tokens(folder) for child in token.children or ()]
    pictures = [child for child in inline if child.type == "image"]
    assert all(Image.open(folder / unquote(picture.attrs["src"])).size for picture in pictures)
    assert all(picture.content for picture in pictures)
    shown = {unquote(picture.attrs["src"]) for picture in pictures}
    assert "pruning_importance.png" in shown
    assert ("recovery_loss.png" in shown) == ("recovered" in folder.name)
    assert ("quality and_size.png" in shown) == ("evaluated" in folder.name)


def test_tables_are_tables_and_rectangular(folder):
    tables, row = [], []
    for token in tokens(folder):
        if token.type == "table_open":
            tables.append([])
        elif token.type == "tr_open":
            row = []
        elif token.type in ("td_open", "th_open"):
            row.append(token.type)
        elif token.type == "tr_close":
            tables[-1].append(len(row))
    assert len(tables) == 3 + ("recovered" in folder.name) + 4 * ("evaluated" in folder.name)
    assert all(len(table) > 1 and len(set(table)) == 1 for table in tables)
    # What was not taken for a table stands in a paragraph.
    said = [token.content for token in tokens(folder) if token.type == "inline"]
    assert not [text for text in said if text.startswith("|")]
    # A parser cuts rows that are too long and fills short ones: count in the text too.
    lines = re.split(r"\n\n", body(folder))
    for block in (block.splitlines() for block in lines if block.startswith("|")):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block}) == 1


def test_links_and_code_are_closed(folder):
    assert sum(line.startswith("```") for line in body(folder).splitlines()) % 2 == 0
    assert not any(token.type == "html_block" for token in tokens(folder))
    inline = [child for token in tokens(folder) for child in token.children or ()]
    assert not any(child.type == "html_inline" for child in inline)
    assert {child.attrs["href"] for child in inline if child.type == "link_open"} == {
        "https://huggingface.co/me/large"
    }


def test_the_metadata(folder):
    head = (folder / "README.md").read_text(encoding="utf-8").split("\n---\n")[0].removeprefix("---\n")
    stated = yaml.safe_load(head)
    data = ModelCardData(**stated)
    assert data.to_dict() == stated
    assert (data.base_model, data["base_model_relation"], data.license) == ("me/large", "finetune", "apache-2.0")
    assert (data.library_name, data.pipeline_tag) == ("transformers", "image-text-to-text")
    assert ("recovered" in data.tags) == ("recovered" in folder.name)
    results = data.eval_results or []
    assert bool(results) == ("evaluated" in folder.name)
    assert all(isinstance(result.metric_value, (int, float)) for result in results)
    assert all(result.task_type == data.pipeline_tag for result in results)


def test_the_evaluation_before_a_recovery_is_not_told_after_it(folders):
    text = body(folders / "recovered")
    assert "has been measured since the recovery." in text
    assert "exact_match" not in text


def test_the_code_in_it_runs(folders, tmp_path, monkeypatch, capsys):
    tiny_llava.rows()[0]["images"][0].save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.+?)```", body(folders / "width"), re.DOTALL)
    code = "".join(blocks).replace("PATH_OR_ID_OF_THIS_CHECKPOINT", str(folders / "width"))
    exec(compile(code, "card", "exec"), {})
    assert "generated_text" in capsys.readouterr().out
    assert pipeline("image-text-to-text", model=str(folders / "width")).task == "image-text-to-text"


def test_no_local_path_is_told(folder):
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert str(folder.parent) not in text
    assert str(Path.home()) not in text
