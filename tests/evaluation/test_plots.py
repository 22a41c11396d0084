"""Pictures of an evaluation: odd intervals, and two models of one name."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
from PIL import Image

from optimum_mllm_prune.evaluation import pictures
from optimum_mllm_prune.evaluation.plots import SizedModel, error_bars, plot_against_size, plot_categories
from optimum_mllm_prune.evaluation.report import EvaluationReport
from optimum_mllm_prune.evaluation.scores import GroupScore, Score
from optimum_mllm_prune.evaluation.statistics import Interval


# A value outside its own bounds by rounding; one without bounds.
OUTSIDE, ALONE = Interval(1.0, 1.0 + 1e-15, 1.5, 0.95), Interval(2.0, math.nan, math.nan, 0.95)
SCORE = Score("anls", 3, "percent", True, OUTSIDE, groups={"a": GroupScore(2, OUTSIDE, None)})


def test_bars_are_never_negative():
    assert error_bars([OUTSIDE, ALONE]) == ([0, 0], [0.5, 0])


@pytest.mark.parametrize("score", [SCORE, replace(SCORE, groups={"a": GroupScore(1, ALONE, None)})])
def test_categories_with_any_interval(score, tmp_path):
    plot_categories(score, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert image.width > 100


@pytest.mark.parametrize("interval", [OUTSIDE, ALONE])
def test_size_with_any_interval(interval, tmp_path):
    plot_against_size([SizedModel("it", 10, interval)], "anls (%)", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


@pytest.mark.parametrize(("baseline", "name"), [("llava", "llava (baseline)"), ("original", "original")])
def test_two_models_of_one_name_are_both_drawn(baseline, name, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(pictures, "plot_memory", lambda reports, _: drawn.update(reports))
    monkeypatch.setattr(pictures, "plot_against_size", lambda models, *_: drawn.update(points=models))
    reports = {role: SimpleNamespace(size=SimpleNamespace(weight_bytes=1)) for role in ("baseline", "model")}
    score = replace(SCORE, groups={}, baseline=OUTSIDE)
    pictures.draw(EvaluationReport("llava", baseline, None, [score], {}, reports, {}, 0.0, None), tmp_path)
    assert {name: drawn[name], "llava": drawn["llava"]} == {name: reports["baseline"], "llava": reports["model"]}
    assert [point.name for point in drawn["points"]] == [name, "llava"]
