"""The picture of a plan's scores: what goes is orange, what stays blue, each where it belongs."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from checkpoint import tiny_llava
from PIL import Image

from optimum_mllm_prune import MLLMPruner, PruningConfig
from optimum_mllm_prune.checkpoint import importance_plot
from optimum_mllm_prune.checkpoint.importance_plot import plot_importance
from optimum_mllm_prune.importance import Scores


NAN = float("nan")


@pytest.fixture
def figure(monkeypatch, tmp_path):
    """Draw and keep the figure, to be asked what is on it."""
    kept = []

    class Kept(importance_plot.Figure):
        def savefig(self, *words, **options):
            kept.append(self)
            super().savefig(*words, **options)

    monkeypatch.setattr(importance_plot, "Figure", Kept)

    def draw(scores, plan):
        plot_importance(scores, plan, tmp_path / "it.png")
        assert Image.open(tmp_path / "it.png").size[0] > 500
        return kept.pop()

    return draw


def plan(num_layers, layers=(), heads=(), channels=(), head_unit="group"):
    return SimpleNamespace(
        method="layer" if layers else "width",
        importance="taylor",
        num_layers=num_layers,
        removed_layers=list(layers),
        removed_heads=dict(enumerate(heads)),
        removed_channels=dict(enumerate(channels)),
        head_unit=head_unit,
    )


def goes(axes):
    """Which cells of a panel, (layers, columns), are orange; None where there is none."""
    pixels = np.asarray(axes.images[0].get_array())
    return [[None if cell.min() == 1 else bool(cell[0] > cell[2]) for cell in row] for row in pixels]


def bars(axes):
    return {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in axes.patches}


@pytest.mark.parametrize("num_layers", [2, 4, 80, 200])
def test_layers(figure, num_layers):
    values = torch.linspace(1, 2, num_layers)
    removed = [0, num_layers // 2]
    drawn = figure(Scores({"layers": values}), plan(num_layers, layers=removed))
    (axes,) = drawn.axes
    assert bars(axes) == pytest.approx({i: value.item() for i, value in enumerate(values)})
    stays, gone = axes.containers
    assert [round(bar.get_x() + 0.4) for bar in gone] == removed
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == [f"stays ({num_layers - 2})", "goes (2)"]
    assert axes.get_yscale() == "linear"
    assert drawn.get_size_inches()[0] <= 13
    assert {bar.get_facecolor() for bar in stays}.isdisjoint(bar.get_facecolor() for bar in gone)


def test_layers_of_very_different_size_get_a_log_scale(figure):
    (axes,) = figure(Scores({"layers": torch.tensor([30.0, 1.0, 2.0])}), plan(3, layers=[1])).axes
    assert axes.get_yscale() == "log"


def test_widths(figure):
    scores = Scores({"heads": torch.tensor([[1.0, 3, 2, 4], [4, 3, 2, 1]]), "channels": torch.rand(2, 6)})
    drawn = figure(scores, plan(2, heads=[[0], [3]]))
    heads, lost, channels, none_lost = drawn.axes
    assert goes(heads) == [[False, False, False, True]] * 2
    assert heads.get_title() == "attention heads: 25 % go"
    assert heads.get_xlabel() == "key-value groups, most important first"
    assert [bar.get_width() for bar in lost.patches] == pytest.approx([10, 10])
    assert goes(channels) == [[False] * 6] * 2
    assert channels.get_title() == "MLP channels: none go"
    assert [bar.get_width() for bar in none_lost.patches] == [0, 0]


def test_the_more_important_the_darker(figure):
    heads = figure(Scores({"heads": torch.tensor([[0.0, 1, 4, 16]])}), plan(1, heads=[[0]])).axes[0]
    shades = np.asarray(heads.images[0].get_array())[0].sum(axis=-1)
    assert list(shades) == sorted(shades)
    assert len(set(shades.round(3))) == 4


def test_a_part_that_goes_although_it_is_not_the_least(figure):
    """As in an edited plan, or where as many must go from each group."""
    heads = figure(Scores({"heads": torch.tensor([[4.0, 3, 2, 1]])}), plan(1, heads=[[1]], head_unit="query")).axes[0]
    assert goes(heads) == [[False, True, False, False]]
    assert heads.get_xlabel() == "query heads, most important first"


def test_a_layer_without_such_a_block_is_left_blank(figure):
    scores = Scores({"heads": torch.tensor([[NAN, NAN], [2.0, 1], [NAN, NAN], [1, 2]])})
    heads, lost = figure(scores, plan(4, heads=[[1], [0]])).axes
    assert goes(heads) == [[None, None], [False, True], [None, None], [False, True]]
    assert [bar.get_width() for bar in lost.patches] == pytest.approx([0, 100 / 3, 0, 100 / 3])


def test_blocks_outside_the_decoder_are_not_taken_for_layers(figure):
    scores = Scores({"channels": torch.tensor([[1.0, 2]]), "channels_outside": torch.tensor([[5.0, 6]])})
    channels, _ = figure(scores, plan(1, channels=[[0], [1]])).axes
    assert goes(channels) == [[False, True]]


@pytest.mark.parametrize(("num_layers", "width", "kept"), [(1, 121, 100), (80, 11008, 8256), (3, 416, 296)])
def test_many_channels_are_averaged_where_they_lie(figure, num_layers, width, kept):
    values = torch.rand(num_layers, width)
    removed = [sorted(row.argsort()[: width - kept].tolist()) for row in values]
    channels, _ = figure(Scores({"channels": values}), plan(num_layers, channels=removed)).axes
    for row in goes(channels):
        assert len(row) == 120
        assert row == sorted(row)
        assert abs(row.count(False) / 120 - kept / width) <= 1 / 120
    assert channels.get_xlim() == (0, width)


def test_scores_of_nothing(figure):
    heads, lost = figure(Scores({"heads": torch.zeros(2, 3)}), plan(2, heads=[[0], [0]])).axes
    assert goes(heads) == [[True, False, False]] * 2
    assert [bar.get_width() for bar in lost.patches] == [0, 0]


def test_the_hidden_size(figure):
    scores = Scores({"hidden": torch.tensor([3.0, 1, 4, 2]), "layers": torch.zeros(2)})
    made = SimpleNamespace(method="hidden", importance="activation", removed_hidden=[1, 2])
    drawn = figure(scores, made)
    (axes,) = drawn.axes
    stays, gone = ({round(y, 3) for _, y in area.get_paths()[0].vertices} - {0.0} for area in axes.collections)
    # Dimension 2 goes although it is the most important, as in an edited plan.
    assert (stays, gone) == ({3.0, 2.0}, {4.0, 1.0})
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["stays (2)", "goes (2)"]


@pytest.mark.parametrize(
    ("method", "importance"), [("width", "random"), ("width", "magnitude_l2"), ("layer", "random")]
)
def test_of_a_real_plan(figure, method, importance):
    made = MLLMPruner(tiny_llava.model())
    real = made.plan(PruningConfig(method=method, ratio=0.3, importance=importance))
    panels = figure(made.scores, real).axes
    if method == "layer":
        assert [round(bar.get_x() + 0.4) for bar in panels[0].containers[1]] == real.removed_layers
        return
    heads, _, channels, _ = panels
    for axes, removed, units in ((heads, real.removed_heads, 4), (channels, real.removed_channels, 416)):
        count = len(next(iter(removed.values())))
        assert all(abs(row.count(True) / len(row) - count / units) <= 1 / 120 for row in goes(axes))
