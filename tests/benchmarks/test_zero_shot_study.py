"""The study without training: the paper's method against our own cuts, what is not repeated, and the figures."""

import copy
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from masking import masked
from transformers import AutoModelForImageTextToText, AutoProcessor

from optimum_mllm_prune import MLLMPruner, PruningConfig
from optimum_mllm_prune.checkpoint import trial_inputs


sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import zero_shot_cells
import zero_shot_study
from paper_width import masked_copy, paper_removal
from zero_shot_cells import Cell, cells
from zero_shot_report import cell_text, write_report
from zero_shot_results import Lines, Outcome, Results
from zero_shot_variants import BY_NAME, FAMILIES, VARIANTS, Variant
from zero_shot_verdicts import margin, verdict_of


# Its `families.py` and others have names that tests have too.
sys.path.remove(str(Path(__file__).parents[2] / "benchmarks"))

ROOT = Path(__file__).parents[2]
NONE_WHOLE = {"heads": (0, 0), "channels": (0, 0)}
ENDS_WHOLE = {"heads": (1, 1), "channels": (1, 1)}
UNEVEN = {"heads": (2, 1), "channels": (1, 0)}
# By weights alone: nothing has to be calibrated.
AS_CUT = {"importance": "magnitude_l1", "repair": "none", "channel_multiple": 1}
PAPER = Variant("theirs", "width", {}, paper=True)
OURS = Variant("ours", "width", {})


@pytest.fixture(scope="module", params=["llava", "llava_gqa"])
def pruner(request):
    folder = ROOT / "examples" / "digit_scenes" / request.param
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    return MLLMPruner(model, AutoProcessor.from_pretrained(folder))


@pytest.fixture(scope="module")
def scores(pruner):
    return pruner.score(PruningConfig(method="width", **AS_CUT))


@pytest.fixture(scope="module")
def inputs(pruner):
    return trial_inputs(pruner.model, pruner.processor)


@torch.no_grad()
def logits(model, inputs):
    return model(**inputs).logits


@pytest.mark.parametrize("ratio", [0.3, 0.6])
def test_with_nothing_whole_it_is_our_own_cut(pruner, scores, inputs, ratio):
    backbone = pruner.backbone()
    plan = pruner.plan(PruningConfig(method="width", ratio=ratio, **AS_CUT), scores=scores)
    removal = paper_removal(backbone, scores, ratio, NONE_WHOLE)
    assert removal.units == {"heads": plan.removed_heads, "channels": plan.removed_channels}
    assert removal.parameters == plan.parameters["before"] - plan.parameters["after"]
    assert removal.ratio == pytest.approx(plan.ratio["achieved"], abs=1e-6)
    cut = MLLMPruner(copy.deepcopy(pruner.model), pruner.processor).prune(plan)
    theirs = logits(masked_copy(pruner.model, backbone, removal), inputs)
    torch.testing.assert_close(logits(cut, inputs), theirs, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(theirs, logits(pruner.model, inputs), atol=1e-2)


@pytest.mark.parametrize("whole", [ENDS_WHOLE, UNEVEN])
def test_what_is_removed_is_not_read_and_the_ends_stay(pruner, scores, inputs, whole):
    backbone = pruner.backbone()
    removal = paper_removal(backbone, scores, 0.45, whole)
    for kind, (first, last) in whole.items():
        layers = [site.layer for site in getattr(backbone, kind).sites if site.prefix in removal.units[kind]]
        assert layers == list(range(first, 8 - last))
        assert len({len(units) for units in removal.units[kind].values()}) == 1
    everywhere = {
        kind: {site.prefix: removal.units[kind].get(site.prefix, []) for site in getattr(backbone, kind).sites}
        for kind in whole
    }
    plan = SimpleNamespace(
        removed_hidden=[],
        removed_projector={},
        norm_factors={},
        removed_layers=[],
        removed_heads=everywhere["heads"],
        removed_channels=everywhere["channels"],
    )
    before = logits(pruner.model, inputs)
    with masked(pruner.model, backbone, plan) as hooked:
        expected = logits(hooked, inputs)
    torch.testing.assert_close(logits(masked_copy(pruner.model, backbone, removal), inputs), expected)
    assert torch.equal(logits(pruner.model, inputs), before)


@pytest.mark.parametrize("ratio", [0.15, 0.3, 0.45, 0.6])
def test_parameters_are_counted_as_if_cut(pruner, scores, ratio):
    removal = paper_removal(pruner.backbone(), scores, ratio, ENDS_WHOLE)
    text = pruner.model.config.text_config
    queries = text.num_attention_heads // text.num_key_value_heads
    group = 2 * (queries + 1) * text.head_dim * text.hidden_size
    heads, channels = (sum(map(len, removal.units[kind].values())) for kind in ("heads", "channels"))
    assert removal.parameters == heads * group + channels * 3 * text.hidden_size
    assert removal.ratio == pytest.approx(ratio, abs=0.002)


def test_a_ratio_out_of_reach_takes_what_there_is(pruner, scores):
    removal = paper_removal(pruner.backbone(), scores, 0.9, ENDS_WHOLE)
    text = pruner.model.config.text_config
    assert {len(units) for units in removal.units["heads"].values()} == {text.num_key_value_heads - 1}
    assert {len(units) for units in removal.units["channels"].values()} == {text.intermediate_size - 1}
    assert removal.ratio < 0.75


def test_every_variant_has_its_own_name_and_a_family():
    assert len(BY_NAME) == len(VARIANTS)
    assert {variant.family for variant in VARIANTS} <= set(FAMILIES)
    assert {variant.family for variant in VARIANTS if variant.paper} == {"width", "layer"}


def test_the_key_is_all_that_determines_a_cell():
    other = Variant("theirs", "width", {"head_share": 0.0}), Variant("theirs", "width", {}, whole=ENDS_WHOLE)
    made = [Cell("llava", PAPER, 0.3, 0), Cell("llava_gqa", PAPER, 0.3, 0), Cell("llava", PAPER, 0.15, 0)]
    made += [Cell("llava", PAPER, 0.3, 1), Cell("llava", PAPER, 0.3, 0, 14), Cell("llava")]
    made += [Cell("llava", variant, 0.3, 0) for variant in other]
    assert len({cell.key for cell in made}) == len(made)
    assert Cell("llava", OURS, 0.3, 0).key == Cell("llava", PAPER, 0.3, 0).key


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the command on three cells, one of which is refused; gives the names of those that were measured."""
    monkeypatch.setitem(BY_NAME, "strange", Variant("strange", "width", {"strange": 1}))
    measured = []

    def spy(cell):
        measured.append(cell.name)
        return zero_shot_cells.measure(cell)

    monkeypatch.setattr(zero_shot_study, "measure", spy)
    monkeypatch.setattr(zero_shot_cells, "TRAIN_ROWS", 60)

    def command(*flags):
        measured.clear()
        flags = ["--variants", "paper: layers", "strange", "--seeds", "1", "--test-rows", "14", *flags]
        flags += ["--models", "llava", "--ratios", "0.3", "--output", str(tmp_path / "docs")]
        zero_shot_study.main([str(tmp_path / "results.jsonl"), *flags])
        return list(measured)

    return command


def test_what_is_there_is_not_measured_again(run, tmp_path):
    original, layers, strange = "llava, original", "llava, paper: layers, 30 %, seed 0", "llava, strange, 30 %, seed 0"
    assert run() == [original, layers, strange]
    file, report = tmp_path / "results.jsonl", tmp_path / "docs" / "zero_shot.md"
    first = file.read_text()
    assert [json.loads(line)["name"] for line in first.splitlines()] == [original, layers, strange]
    assert "| strange |  | PruningConfig has no key 'strange'" in report.read_text()
    report.write_text("# By hand\n\n" + report.read_text())
    assert run() == [strange]
    assert file.read_text() == first
    assert report.read_text().startswith("# By hand\n")
    # Broken off in the middle of a line.
    file.write_text(first[: first.index(layers) + 5])
    assert run("--only-report") == []
    assert run() == [layers, strange]
    assert [line["name"] for line in map(json.loads, file.read_text().splitlines()[2:])] == [layers, strange]
    found = Lines(file).of(Cell("llava", BY_NAME["paper: layers"], 0.3, 0, 14))
    assert found["removed"] == pytest.approx(0.357, abs=1e-3)
    assert found["exact_match"] == pytest.approx(100 * found["right"].count("1") / 14)


def outcome(variant, *right, original="1" * 10, removed=0.3, seeds=None):
    rows = [np.array(list(text), dtype=float) for text in (original, *right)]
    seeds = tuple(range(len(right))) if seeds is None else seeds
    return Outcome(variant, 0.3, rows[0], np.stack(rows[1:]), seeds, removed)


def keeping(number):
    return "1" * number + "0" * (10 - number)


def test_an_outcome_is_the_mean_over_seeds():
    found = outcome(OURS, keeping(6), keeping(2), original=keeping(8))
    assert found.by_seed == pytest.approx([75, 25])
    assert (found.retained, found.lost) == pytest.approx((50, 50))
    assert found.interval.value == pytest.approx(50)
    assert found.interval.low < 50 < found.interval.high
    assert cell_text(found).startswith("50.0 (25.0-75.0) [")


@pytest.mark.parametrize(
    ("paper", "ours", "ahead", "holds", "share"),
    [
        (6, 8, 0.0, True, 50.0),
        (6, 7, -10.0, False, 75.0),
        (4, 9, 20.0, True, 16.7),
        (10, 10, 0.0, True, None),
        (10, 9, -10.0, False, None),
    ],
)
def test_verdicts_by_hand(paper, ours, ahead, holds, share):
    verdict = verdict_of("llava", [outcome(PAPER, keeping(paper)), outcome(OURS, keeping(ours))])
    assert verdict.margin.value == pytest.approx(ahead)
    assert verdict.holds is holds
    assert verdict.sure is (verdict.margin.low >= 0 if holds else verdict.margin.high < 0)
    assert verdict.share == (None if share is None else pytest.approx(share, abs=0.1))


def test_a_margin_is_relative_to_the_original():
    found = margin(outcome(PAPER, keeping(4), original=keeping(8)), outcome(OURS, keeping(7), original=keeping(8)))
    # Theirs loses 50 % of the original's 80 %, ours 12.5 %.
    assert found.value == pytest.approx(12.5)
    assert found.low < 12.5 < found.high


def test_the_best_of_ours_is_compared_with_the_better_of_theirs():
    better = outcome(PAPER, keeping(6))
    chosen = outcome(OURS, keeping(8))
    too_little, other_seeds = outcome(OURS, keeping(10), removed=0.28), outcome(OURS, keeping(9), seeds=(1,))
    others = [outcome(PAPER, keeping(3)), outcome(OURS, keeping(7), removed=0.295), too_little, other_seeds]
    verdict = verdict_of("llava", [*others, better, chosen])
    assert (verdict.paper, verdict.ours, verdict.choices) == (better, chosen, 2)
    assert verdict_of("llava", [better, too_little]) is None
    assert verdict_of("llava", [chosen]) is None


def test_the_report_says_what_was_found(tmp_path):
    variants = [BY_NAME["paper: width"], BY_NAME["taylor, refitted"]]
    wanted = cells(["llava"], variants, [0.3], 2, 10)
    lines = Lines(tmp_path / "results.jsonl")
    for cell, right, removed in zip(wanted, (10, 6, 9, 6, 8), (0.0, 0.3, 0.27, 0.3, 0.32), strict=True):
        found = {"exact_match": 10.0 * right, "right": keeping(right), "removed": removed, "code": str(right % 2)}
        lines.add({"key": cell.key, "name": cell.name, **found})
    text = write_report(Results(Lines(lines.file), wanted), wanted, tmp_path).read_text()
    assert "| llava | width | 30 % | 30.0 / 29.5 | 40.0 (paper: width) | 15.0 (taylor, refitted; best of 1) |" in text
    assert "| 38 % | +5.0 [" in text and "**1 of 1 yes**, 1 of all within chance" in text
    assert "| **yes**, within chance |" in text
    assert "| width | taylor, refitted | **85.0 (80.0-90.0) [" in text
    assert "| width | *paper: width* | 60.0 [" in text
    assert "measured by 2 states of the code" in text
    assert {path.name for path in (tmp_path / "zero_shot").iterdir()} == {"llava.png"}
