"""The whole: two models side by side, as data, as a table and as a picture."""

import json

import pytest
from checkpoint import tiny_llava
from PIL import Image

from optimum_mllm_prune import MLLMPruner, PruningConfig
from optimum_mllm_prune.errors import UserInputError
from optimum_mllm_prune.evaluation.efficiency import (
    EfficiencyReport,
    Loaded,
    markdown_table,
    measure_efficiency,
    plot_memory,
)
from optimum_mllm_prune.evaluation.efficiency.plots import memory_parts


def pruned():
    return MLLMPruner(tiny_llava.model()).prune(PruningConfig(ratio=0.4, importance="magnitude_l2"))


@pytest.fixture(scope="module")
def models():
    processor = tiny_llava.processor()
    return {"whole": Loaded(tiny_llava.model(), processor), "pruned": Loaded(pruned(), processor)}


@pytest.fixture(scope="module")
def reports(models, tmp_path_factory):
    folder = tiny_llava.save_model(tmp_path_factory.mktemp("whole"))
    return measure_efficiency(models, (1, 2), new_tokens=3, repeats=2, text_tokens=40, folders={"whole": folder})


def test_a_report_a_model(reports, models):
    assert list(reports) == ["whole", "pruned"]
    assert all(isinstance(report, EfficiencyReport) for report in reports.values())
    whole, small = reports.values()
    assert (whole.baseline, small.baseline) == (None, "whole")
    assert whole.speedup == {} and list(small.speedup) == [1, 2]
    assert small.size.parameters == sum(p.numel() for p in models["pruned"].model.parameters())
    assert small.size.weight_bytes < whole.size.weight_bytes < whole.size.disk_bytes
    assert small.cost.prefill_flops < whole.cost.prefill_flops
    assert small.cost.cache.per_token < whole.cost.cache.per_token
    assert small.inputs == "image + text" and small.cost.prompt_tokens == small.cost.text_tokens + 16


def test_what_is_ideal(reports):
    whole, small = reports.values()
    for rows, compared in small.speedup.items():
        assert compared.prefill.ideal == whole.cost.prefill_flops / small.cost.prefill_flops > 1.3
        read = [report.cost.decode_bytes(rows, 3) for report in (whole, small)]
        assert compared.decode.ideal == read[0] / read[1] > 1.3
        assert compared.prefill.share == compared.prefill.measured / compared.prefill.ideal > 0


def test_memory_where_there_is_a_folder(reports):
    whole, small = reports.values()
    assert whole.memory.loaded <= whole.memory.peak[1] and list(whole.memory.peak) == [1, 2]
    assert whole.notes == []
    assert small.memory is None
    assert small.notes == ["Memory is measured in a process that loads the model's folder, and there is none."]


def test_it_is_json(reports):
    found = json.loads(json.dumps(reports["pruned"].to_dict()))
    assert found == reports["pruned"].to_dict()
    compared = found["speedup"]["2"]["decode"]
    assert compared["share"] == compared["measured"] / compared["ideal"]
    assert found["size"]["parts"]["attention"] > 0
    assert found["speed"]["1"]["first_token_seconds"].keys() == {"median", "low", "high"}


def test_the_table(reports):
    lines = markdown_table(reports).splitlines()
    assert {line.count("|") for line in lines} == {4}
    cells = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:4]] for line in lines}
    assert cells[""] == ["whole", "pruned"]
    assert cells["parameters"] == [f"{report.size.parameters:,}" for report in reports.values()]
    compared = reports["pruned"].speedup[1].prefill
    told = f"{compared.measured:.2f} of {compared.ideal:.2f} ({compared.share:.0%})"
    assert cells["speed-up of prefill, batch 1"] == ["-", told]
    assert cells["memory, loaded (MB)"] == [f"{reports['whole'].memory.loaded / 1e6:,.1f}", "-"]


def test_the_picture(reports, tmp_path):
    plot_memory(reports, tmp_path / "memory.png", context=1000, batch_size=4)
    with Image.open(tmp_path / "memory.png") as picture:
        assert picture.size[0] > 800
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 20


def test_what_the_picture_shows(reports):
    report = reports["whole"]
    parts = memory_parts(report, context=1000, batch_size=4)
    assert parts.pop("KV cache (4 x 1,000 tokens)") == 4 * 1000 * report.cost.cache.per_token
    assert parts == report.size.parts
    tokens = report.cost.prompt_tokens + 3
    assert memory_parts(report)[f"KV cache ({tokens} tokens)"] == report.cost.cache.bytes_at(tokens)


def test_nothing_to_draw(tmp_path):
    with pytest.raises(UserInputError, match=r"^there is no report to draw: measure a model first.$"):
        plot_memory({}, tmp_path / "memory.png")


def test_without_a_processor():
    report = measure_efficiency({"it": Loaded(tiny_llava.model())}, (1,), 2, 1, text_tokens=8)["it"]
    assert report.inputs == "text" and report.cost.prompt_tokens == report.cost.text_tokens == 8
    assert report.notes[0] == "There is no processor: the prompt is text alone, and the vision tower was not run."


def test_out_of_memory_at_one_batch_size(monkeypatch):
    model = tiny_llava.model()
    inner = model.generate

    def hungry(input_ids, **options):
        if len(input_ids) == 8:
            raise MemoryError
        return inner(input_ids=input_ids, **options)

    monkeypatch.setattr(model, "generate", hungry)
    models = {"large": Loaded(model), "small": Loaded(tiny_llava.model())}
    reports = measure_efficiency(models, (1, 8), 2, 1, text_tokens=8)
    assert reports["large"].speed[8] is None and reports["large"].speed[1] is not None
    assert "Memory did not suffice for 8 rows at once." in reports["large"].notes
    assert reports["small"].speed[8] is not None
    assert reports["small"].speedup[8] is None and reports["small"].speedup[1] is not None
    assert reports["small"].to_dict()["speedup"]["8"] is None
    assert "decoding, batch 8 (tokens/s) | -" in markdown_table(reports)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_sizes": ()}, "batch_sizes must be at least 1, got none."),
        ({"batch_sizes": (4, 0)}, "batch_sizes must be at least 1, got 4, 0."),
        ({"new_tokens": 1}, "new_tokens must be at least 2, got 1."),
        ({"repeats": 0}, "repeats must be at least 1, got 0."),
        ({"text_tokens": 0}, "text_tokens must be at least 1, got 0."),
        ({"models": {}}, "there is no model to measure: give at least one."),
        ({"folders": {"other": "x"}}, "there is a folder but no model for 'other': give both under one name."),
        (
            {"text_tokens": 600},
            "'whole' knows 512 positions, but a prompt of 616 tokens and 32 new ones take 648: ask for fewer.",
        ),
    ],
)
def test_what_cannot_be_measured(models, changes, message):
    with pytest.raises(UserInputError) as error:
        measure_efficiency(**{"models": models, **changes})
    assert str(error.value) == message


def test_a_model_that_does_not_generate(monkeypatch):
    model = tiny_llava.model()
    monkeypatch.setattr(model, "can_generate", lambda: False)
    with pytest.raises(UserInputError, match=r"^'it' cannot generate: give a model that answers with text.$"):
        measure_efficiency({"it": Loaded(model)})


def test_prompts_of_different_lengths(models):
    with pytest.raises(UserInputError) as error:
        measure_efficiency({"a": models["whole"], "b": Loaded(models["pruned"].model)}, text_tokens=40)
    assert str(error.value) == (
        "the models make prompts of different lengths ('a' 56, 'b' 40 tokens): compare models with the same processor."
    )
