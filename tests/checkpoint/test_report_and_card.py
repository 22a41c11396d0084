"""What stands in `pruning_report.json` and in the model card."""

import json
import re
from dataclasses import replace

import pytest
from checkpoint import tiny_llava
from huggingface_hub import ModelCard

from optimum_mllm_prune import MLLMPruner, PruningConfig, __version__
from optimum_mllm_prune.checkpoint import (
    CARD_NAME,
    PruningReport,
    Verification,
    environment,
    license_of,
    model_card,
    peak_memory,
    weight_bytes,
)
from optimum_mllm_prune.checkpoint.record import sizes_of
from optimum_mllm_prune.checkpoint.sections import ORDER


CALIBRATION = {
    "dataset": "me/rows",
    "split": None,
    "samples": 10,
    "batch_size": 10,
    "tokens": {"image": 160, "prompt": 90, "answer": 40},
    "seed": 42,
    "importance": "taylor",
}


@pytest.fixture(scope="module")
def plans():
    made = MLLMPruner(tiny_llava.model())
    return {
        "width": made.plan(PruningConfig(ratio=0.3, importance="magnitude_l2")),
        "layer": made.plan(PruningConfig(num_layers=2, importance="magnitude")),
    }


def report_of(plan, calibration=None, equal=True):
    return PruningReport(
        parameters=plan.parameters,
        ratio=plan.ratio,
        size_bytes={"before": 10_642_688, "after": 8_799_488},
        notes=plan.notes,
        verification=Verification(
            0.0, [], [], equal, None if equal is None else 2e-7, True, "image + text", "LlavaForConditionalGeneration"
        ),
        timings_seconds={"load": 0.5, "saving": 0.25},
        floor_seconds={"load": 0.3},
        peak_memory_bytes=peak_memory(),
        calibration=calibration,
        environment=environment(tiny_llava.model()),
    )


SIZES = [("decoder layers", 8, 8), ("key-value groups a layer", 4, 3), ("MLP channels a layer", 416, 272)]


def card_of(plan, *, calibration=None, equal=True, license=None, **options):
    return model_card("small", plan, report_of(plan, calibration, equal), license, SIZES, **options)


def sections(text):
    """Headings of the second level to what stands below them."""
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


class TestReport:
    def test_the_file(self, plans, tmp_path):
        report_of(plans["width"], CALIBRATION).save(tmp_path)
        found = json.loads((tmp_path / "pruning_report.json").read_text())
        assert found["parameters"].keys() == {"before", "after", "backbone_before", "backbone_after"}
        assert found["ratio"].keys() == {"requested", "achieved"}
        assert found["verification"].keys() == {
            "max_abs_logit_difference",
            "missing_keys",
            "unexpected_keys",
            "generated_tokens_equal",
            "cache_logit_difference",
            "without_package",
            "inputs",
            "model_class",
        }
        assert found["verification"]["without_package"] is True
        assert found["timings_seconds"] == {"load": 0.5, "saving": 0.25}
        assert found["floor_seconds"] == {"load": 0.3}
        assert found["calibration"] == CALIBRATION
        assert found["peak_memory_bytes"]["cpu"] > 50e6
        assert {"torch", "transformers", "python", "platform", "device", "dtype", "threads"} <= found[
            "environment"
        ].keys()

    def test_weight_bytes(self):
        model = tiny_llava.model()
        assert weight_bytes(model) == 4 * sum(p.numel() for p in model.parameters())
        assert weight_bytes(model.half()) == 2 * sum(p.numel() for p in model.parameters())

    def test_tied_weights_count_once(self):
        model = tiny_llava.model()
        whole = weight_bytes(model)
        model.lm_head.weight = model.get_input_embeddings().weight
        assert weight_bytes(model) == whole - 4 * model.lm_head.weight.numel()


class TestCard:
    @pytest.mark.parametrize("method", ["width", "layer"])
    @pytest.mark.parametrize("calibration", [None, CALIBRATION])
    @pytest.mark.parametrize("command", [None, "optimum-cli mllm-prune --model me/large small"])
    @pytest.mark.parametrize("base", [None, "me/large"])
    def test_every_section_is_filled(self, plans, method, calibration, command, base):
        plan = plans[method]
        plan = replace(plan, command=command, model=plan.model | {"base_model": base})
        card = card_of(plan, calibration=calibration, license="mit" if base else None)
        text = str(card)
        found = sections(text)
        assert list(found) == list(ORDER)
        assert all(len(content.strip()) > 30 for content in found.values())
        assert not re.search(r"\bNone\b|\{\{|\}\}|\{%|%\}|Undefined|\bnan\b", text)
        assert "# small\n" in text
        assert (command in found["How it was made"]) if command else ("```bash" not in text)
        assert ("[me/large](https://huggingface.co/me/large)" in text) == bool(base)
        assert ("10 rows of `me/rows`, seed 42" in text) == bool(calibration)

    @pytest.mark.parametrize("method", ["width", "layer"])
    def test_metadata(self, plans, method, tmp_path):
        plan = plans[method]
        plan = replace(plan, model=plan.model | {"base_model": "me/large"})
        card_of(plan, license="apache-2.0").save(tmp_path / CARD_NAME)
        data = ModelCard.load(tmp_path / CARD_NAME).data
        assert data.base_model == "me/large"
        assert data.library_name == "transformers"
        assert data.pipeline_tag == "image-text-to-text"
        assert data.license == "apache-2.0"
        assert {"mllm-prune", "pruning", f"{method}-pruning"} <= set(data.tags)

    def test_what_is_not_known_is_left_out_of_the_metadata(self, plans):
        data = card_of(plans["width"]).data.to_dict()
        assert data.keys() == {"library_name", "pipeline_tag", "tags"}

    def test_figures(self, plans):
        plan = plans["layer"]
        text = str(card_of(plan))
        for key in ("before", "after", "backbone_before", "backbone_after"):
            assert f"{plan.parameters[key]:,}" in text
        assert "10.6 MB | 8.8 MB | 82.7 %" in text
        assert f"decoder layers {', '.join(map(str, plan.removed_layers))} (numbered from 0 to 7)" in text
        assert "| largest difference of any logit | 0.0 |" in text

    def test_removed_widths(self, plans):
        found = sections(str(card_of(plans["width"])))
        for note in plans["width"].notes:
            assert note in found["What was removed"]
        assert "- decoder layers" not in found["What was removed"]

    def test_scores_are_named_only_where_they_lie_beside_it(self, plans):
        for with_scores in (True, False):
            card = card_of(plans["width"], with_scores=with_scores)
            assert ("pruning_scores.safetensors" in str(card)) == with_scores

    def test_generation(self, plans):
        text = str(card_of(plans["width"]))
        assert "| generation with and without a cache | the same tokens |" in text
        assert "| largest difference of its logits in float32, as a share of the largest | 2.0e-07 |" in text
        text = str(card_of(plans["width"], equal=False))
        assert "| generation with and without a cache | other tokens where two logits tie |" in text

    def test_where_the_scores_come_from(self, plans):
        def told(**changes):
            plan = replace(plans["width"], **changes)
            return sections(str(card_of(plan)))["How it was made"]

        assert "No calibration data was used" in told()
        assert "No calibration data was used" in told(importance="random")
        replayed = told(importance="taylor", config=plans["width"].config | {"dataset": "me/rows"})
        assert "The scores come from an earlier calibration on `me/rows`." in replayed
        assert "The scores come from an earlier calibration." in told(importance="taylor", config={})

    def test_generation_that_was_not_compared(self, plans):
        text = str(card_of(plans["width"], equal=None))
        assert "| generation with and without a cache | not compared: the original's own differs |" in text

    def test_the_code_in_it_is_python(self, plans):
        for has_processor in (True, False):
            text = str(card_of(plans["width"], has_processor=has_processor))
            code = re.findall(r"```python\n(.+?)```", text, re.DOTALL)
            assert len(code) == 1 + has_processor
            assert ("AutoProcessor" in text) == has_processor
            compile("\n".join(code), "card", "exec")

    def test_what_there_was_and_is(self, plans):
        found = sections(str(card_of(plans["width"])))["What was removed"]
        assert "| decoder layers | 8 | 8 | 0.0 % |" in found
        assert "| MLP channels a layer | 416 | 272 | 34.6 % |" in found

    @pytest.mark.parametrize("method", ["width", "layer"])
    def test_sizes_are_those_of_the_pruned_model(self, plans, method):
        made = MLLMPruner(tiny_llava.model())
        backbone = made.backbone()
        config = made.prune(plans[method]).config.text_config
        layers, heads, channels = sizes_of(plans[method], backbone)
        assert layers == ("decoder layers", 8, config.num_hidden_layers)
        assert heads == ("key-value groups a layer", 4, config.num_key_value_heads)
        assert channels == ("MLP channels a layer", 416, config.intermediate_size)

    def test_a_twin_and_a_commit_are_told(self, plans):
        plan = replace(plans["width"], twin="mistral")
        text = str(card_of(replace(plan, model=plan.model | {"base_model_revision": "0123abc"})))
        assert "declared as `mistral`, which computes the same" in text
        assert "read at commit `0123abc`" in text
        assert "declared as" not in str(card_of(plans["layer"]))

    def test_the_picture_is_shown_where_there_is_one(self, plans):
        assert "](pruning_importance.png)" in str(card_of(plans["width"], plot="pruning_importance.png"))
        assert "![" not in str(card_of(plans["width"]))

    def test_who_is_to_be_cited(self, plans):
        cited = sections(str(card_of(plans["width"])))["Citation"]
        assert "eprint = {2507.20749}" in cited
        assert f"version = {{{__version__}}}" in cited
        assert cited.count("{") == cited.count("}")

    def test_the_license(self, plans):
        assert "`mit`, as the base model states it" in sections(str(card_of(plans["width"], license="mit")))["License"]
        assert "license was not found" in sections(str(card_of(plans["width"])))["License"]


class TestLicense:
    def test_of_a_folder(self, tmp_path):
        (tmp_path / CARD_NAME).write_text("---\nlicense: mit\n---\n\n# A model\n")
        assert license_of(str(tmp_path)) == "mit"

    def test_none_is_stated(self, tmp_path):
        assert license_of(str(tmp_path)) is None
        (tmp_path / CARD_NAME).write_text("# A model\n")
        assert license_of(str(tmp_path)) is None

    @pytest.mark.parametrize(
        "text",
        [
            "---\nlicense: [mit\n---\n",
            "---\n- a list\n---\n",
            "---\nlicense: 3\n---\n",
            "---\nlicense:\n  name: mit\n---\n",
            "---\n: : :\n\t- x\n---\n",
        ],
    )
    def test_metadata_that_cannot_be_read(self, tmp_path, text):
        (tmp_path / CARD_NAME).write_text(text)
        assert license_of(str(tmp_path)) is None

    def test_not_utf_8(self, tmp_path):
        (tmp_path / CARD_NAME).write_bytes(b"\xff\xfe")
        assert license_of(str(tmp_path)) is None

    def test_of_the_hub(self, tmp_path, monkeypatch):
        (tmp_path / CARD_NAME).write_text("---\nlicense: mit\n---\n")
        hub = {"revision": "v1", "token": "t", "cache_dir": "c"}

        def fetch(repo_id, name, **options):
            assert (repo_id, name, options) == ("me/large", CARD_NAME, hub)
            return str(tmp_path / name)

        monkeypatch.setattr("optimum_mllm_prune.checkpoint.card.hf_hub_download", fetch)
        assert license_of("me/large", **hub) == "mit"

    def test_the_hub_cannot_be_reached(self):
        assert license_of("no-such/model") is None
