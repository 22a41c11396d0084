"""The decision guide: what it says at and between the paper's ratios, and that its figures are the paper's."""

import re
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimum_mllm_prune.configuration import PruningConfig
from optimum_mllm_prune.errors import UserInputError
from optimum_mllm_prune.planning.guide import BUDGETS, Advice, advise
from optimum_mllm_prune.planning.retention import BEST, PROJECTOR, UNTRAINED, expected
from optimum_mllm_prune.recovery.arguments import RecoveryArguments
from optimum_mllm_prune.recovery.recipe import PRESETS


RATIOS = st.floats(0.001, 0.999)


def words_of(advice: Advice) -> str:
    return " ".join(advice.why + advice.warnings)


@pytest.mark.parametrize(
    ("ratio", "recover", "method", "recovery", "fraction"),
    [
        (0.15, "none", "width", "none", None),
        (0.60, "none", "width", "none", None),
        (0.05, "projector", "layer", "projector", 1.0),
        (0.15, "projector", "layer", "projector", 1.0),
        (0.45, "projector", "layer", "projector", 1.0),
        (0.15, "lora", "layer", "projector", 0.05),
        # Five of 32 layers, which the paper calls 15 %.
        (0.1502, "lora", "layer", "projector", 0.05),
        (0.16, "lora", "layer", "lora", 0.05),
        (0.30, "lora", "layer", "lora", 0.05),
        (0.30, "full", "layer", "lora", 0.05),
        (0.44, "lora", "layer", "lora", 0.05),
        (0.45, "lora", "width", "lora", 0.05),
        (0.49, "lora", "width", "lora", 0.05),
        (0.50, "lora", "width", "lora", 1.0),
        (0.60, "lora", "width", "lora", 1.0),
        (0.61, "lora", "width", "lora", 1.0),
    ],
)
def test_the_guide(ratio, recover, method, recovery, fraction):
    rows = 665_000 if fraction == 0.05 else None
    advice = advise(ratio, recover, rows)
    assert (advice.method, advice.recovery, advice.fraction) == (method, recovery, fraction)


@given(RATIOS, st.sampled_from(BUDGETS), st.none() | st.integers(1, 10**7))
def test_whatever_is_advised_can_be_done(ratio, recover, rows):
    advice = advise(ratio, recover, rows)
    config = PruningConfig(method=advice.method, ratio=ratio, importance=advice.importance)
    assert (advice.head_share is None) == (config.method == "layer")
    assert (advice.recovery == "none") == (recover == "none")
    trained = (advice.loss, advice.learning_rate, advice.fraction)
    assert (None in trained) == (trained == (None, None, None)) == (advice.recovery == "none")
    assert advice.loss is None or advice.loss in PRESETS
    assert advice.fraction is None or 0 < advice.fraction <= 1
    assert all(sentence.endswith(".") and "\n" not in sentence for sentence in advice.why + advice.warnings)
    assert "arXiv 2507.20749" in advice.why[-1]
    # Every other sentence rests on a figure.
    assert all(re.search(r"\d\d\.\d %", sentence) for sentence in advice.why[:-1])


def test_the_learning_rate_is_the_one_recovery_has_anyway(tmp_path):
    arguments = RecoveryArguments(output_dir=str(tmp_path), use_cpu=True)
    advice = advise(0.3, "lora")
    assert (advice.learning_rate, advice.loss) == (arguments.learning_rate, arguments.loss)


@pytest.mark.parametrize(
    ("ratio", "recover", "warnings"),
    [
        (0.15, "none", []),
        (0.15, "projector", []),
        (0.45, "lora", []),
        (0.49, "lora", []),
        (0.50, "lora", ["From 50 % up train on all the data there are."]),
        (0.60, "lora", ["From 50 % up train on all the data there are."]),
        (
            0.61,
            "lora",
            [
                "Over 60 % is not recommended: the best recipe kept 78.1-83.9 % at 60 %.",
                "From 50 % up train on all the data there are.",
            ],
        ),
        (
            0.30,
            "none",
            [
                "Beyond 15 % train afterwards: width kept 73.7-79.9 % at 30 % without training, the best recipe "
                "94.4-96.4 % at 30 % with it."
            ],
        ),
        (
            0.45,
            "projector",
            [
                "Beyond 15 % the projector alone falls behind: layers kept 79.0 % at 45 %, the best recipe with "
                "adapters 84.0 % at 45 % (LLaVA-1.5-7B); train 'lora' instead."
            ],
        ),
        (
            0.15,
            "full",
            ["The paper trained adapters in the backbone: of a backbone trained in full it has no figures."],
        ),
    ],
)
def test_warnings(ratio, recover, warnings):
    assert list(advise(ratio, recover).warnings) == warnings


def test_reasons_at_the_papers_own_ratios():
    assert advise(0.15).why == (
        "Without training, width kept 90.9-94.7 % at 15 %, layers 72.2-90.5 % at 15 % "
        "(LLaVA-1.5-7B, Mini-InternVL-4B, Bunny-3B).",
        "Figures: Huang et al., arXiv 2507.20749 and 2604.24380; percent of the original's mean over nine benchmarks.",
    )
    assert advise(0.15, "lora").why[:2] == (
        "With the projector trained alone, layers kept 95.2 % at 15 %, width 94.0 % at 15 % (LLaVA-1.5-7B).",
        "With adapters in the backbone too, layers kept 98.1 % at 15 % (LLaVA-1.5-7B).",
    )
    assert advise(0.45, "lora").why[:2] == (
        "The best recipe, adapters and projector trained, kept 84.0-90.5 % at 45 % "
        "(LLaVA-1.5-7B, Mini-InternVL-4B, Bunny-3B): layers up to 30 %, width from 45 % up.",
        "Of the losses, by width, cross entropy with hidden states kept 83.7 % at 45 %, cross entropy alone 83.9 % at "
        "45 %, logits alone 78.4 % at 45 % (LLaVA-1.5-7B).",
    )


def test_between_two_ratios_both_are_named():
    assert "width kept 90.9-94.7 % at 15 % and 73.7-79.9 % at 30 %" in words_of(advise(0.2))


@pytest.mark.parametrize(
    ("ratio", "rows", "fraction", "sentence"),
    [
        (
            0.3,
            None,
            1.0,
            "All rows unless they are many: 5 % of the data reached 97.7 % at 30 % of what all the data did, but of "
            "LLaVA-1.5's data those are 33,250 rows.",
        ),
        (0.3, 665_000, 0.05, "A part of the rows: 5 % of the data reached 97.7 % at 30 % of what all the data did."),
        (
            0.5,
            665_000,
            1.0,
            "All rows: 5 % of the data reached 96.4 % at 45 % and 68.9 % at 60 % of what all the data did.",
        ),
    ],
)
def test_how_many_rows(ratio, rows, fraction, sentence):
    advice = advise(ratio, "lora", rows)
    assert advice.fraction == fraction
    assert sentence in advice.why


@pytest.mark.parametrize(("rows", "fraction"), [(1, 1.0), (33_250, 1.0), (66_500, 0.5), (10**7, 0.05)])
def test_as_many_rows_as_the_papers_smallest_share(rows, fraction):
    assert advise(0.3, "lora", rows).fraction == fraction


@pytest.mark.parametrize(
    ("ratio", "method", "recovery", "low", "high"),
    [
        (0.15, "width", "none", 90.87, 94.74),
        (0.30, "layer", "none", 57.42, 69.18),
        (0.60, "width", "none", 6.75, 14.51),
        (0.30, "layer", "lora", 94.37, 96.38),
        (0.45, "width", "lora", 83.99, 90.48),
        (0.60, "width", "lora", 78.13, 83.86),
        (0.45, "layer", "projector", 79.0, 79.0),
        (0.30, "width", "lora", 92.2, 92.2),
    ],
)
def test_what_the_paper_measured_is_expected(ratio, method, recovery, low, high):
    found = expected(ratio, method, recovery)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert len(found.models) == (1 if low == high else 3)


def test_between_its_ratios_expectations_lie_on_lines():
    found = expected(0.2, "width", "none")
    lines = [a + (b - a) / 3 for a, b, *_ in UNTRAINED["width"]]
    assert (found.low, found.high) == (pytest.approx(min(lines)), pytest.approx(max(lines)))
    below = expected(0.05, "layer", "projector")
    assert below.low == below.high == pytest.approx(100 - 4.8 / 3)


@pytest.mark.parametrize(
    ("ratio", "method", "recovery"),
    [(0.61, "width", "lora"), (0.7, "layer", "none"), (0.3, "layer", "full"), (0.45, "layer", "lora")],
)
def test_nothing_is_expected_where_the_paper_has_no_figures(ratio, method, recovery):
    assert expected(ratio, method, recovery) is None


@given(RATIOS, st.sampled_from(["layer", "width"]), st.sampled_from(BUDGETS))
def test_expectations_are_percentages_of_the_original(ratio, method, recovery):
    found = expected(ratio, method, recovery)
    assert found is None or 0 < found.low <= found.high <= 100


def test_expectations_in_words():
    assert str(expected(0.15, "width", "none")) == "90.9-94.7 %"
    assert str(expected(0.15, "layer", "projector")) == "95.2 %"


def test_the_figures_say_what_the_guide_does():
    for width, layer in zip(UNTRAINED["width"], UNTRAINED["layer"], strict=True):
        assert width[0] > layer[0] and width[1] > layer[1]
    gaps = [layer - width for layer, width in zip(PROJECTOR["layer"][0], PROJECTOR["width"][0], strict=True)]
    assert all(gap >= -0.5 for gap in gaps)
    assert [mean(curve[i] for curve in BEST) > 75 for i in range(4)] == [True] * 4


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        ({"ratio": 0}, "ratio must lie between 0 and 1 (0.15 removes 15 %), got 0."),
        ({"ratio": 1.0}, "ratio must lie between 0 and 1 (0.15 removes 15 %), got 1.0."),
        ({"ratio": 0.3, "recover": "all"}, "unknown recover 'all': use one of none, projector, lora, full."),
        ({"ratio": 0.3, "rows": 0}, "rows must be at least 1, got 0."),
    ],
)
def test_what_cannot_be_advised_on(wish, reason):
    with pytest.raises(UserInputError) as error:
        advise(**wish)
    assert str(error.value) == reason
