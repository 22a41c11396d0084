import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optimum_mllm_prune.planning.selection import firsts, layer_order, least_runs, weakest


NAN = float("nan")
# Few values, so that many tie.
values = st.integers(0, 3).map(float)


@st.composite
def scored_sites(draw):
    sets, size = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    rows = draw(st.lists(st.lists(values, min_size=sets * size, max_size=sets * size), min_size=1, max_size=4))
    return torch.tensor(rows), draw(st.integers(0, size)) * sets, sets


@given(scored_sites())
def test_every_site_loses_its_lowest_scores_from_every_set(case):
    scores, remove, sets = case
    expected = []
    for row in scores.tolist():
        size = len(row) // sets
        gone = []
        for start in range(0, len(row), size):
            ranked = sorted(range(start, start + size), key=lambda unit, row=row: (row[unit], unit))
            gone += ranked[: remove // sets]
        expected.append(sorted(gone))
    assert weakest(scores, remove, sets) == expected


@given(st.lists(st.tuples(values, st.sampled_from("ab")), min_size=1, max_size=8), st.data())
def test_layers_go_lowest_first_but_the_protected_and_the_last_of_a_kind(layers, data):
    scores, kinds = zip(*layers, strict=True)
    protected = data.draw(st.sets(st.integers(0, len(layers) - 1)))
    left = {kind: kinds.count(kind) for kind in kinds}
    expected = []
    for layer in sorted(range(len(layers)), key=lambda i: (scores[i], i)):
        if layer not in protected and left[kinds[layer]] > 1:
            left[kinds[layer]] -= 1
            expected.append(layer)
    assert layer_order(torch.tensor(scores), kinds, protected) == expected
    assert {kinds[i] for i in range(len(layers)) if i not in expected} == set(kinds)


@given(st.lists(st.sampled_from("ab"), min_size=1, max_size=7), st.data())
def test_the_run_with_the_least_score_goes_for_every_number(kinds, data):
    number = len(kinds)
    protected = data.draw(st.sets(st.integers(0, number - 1)))
    scores = torch.tensor(
        data.draw(st.lists(st.lists(values, min_size=number, max_size=number), min_size=number, max_size=number))
    )
    choices = least_runs(scores, kinds, protected)
    assert choices[0] == []
    for count in range(1, number + 1):
        allowed = {}
        for first in range(number - count + 1):
            run = list(range(first, first + count))
            left = [kind for layer, kind in enumerate(kinds) if layer not in run]
            if not protected & set(run) and set(left) == set(kinds):
                allowed[first] = scores[first, count - 1].item()
        assert bool(allowed) == (count < len(choices))
        if allowed:
            first = min(allowed, key=lambda first: (allowed[first], first))
            assert choices[count] == list(range(first, first + count))


def test_examples():
    assert firsts([3, 1, 2]) == [[], [3], [3, 1], [3, 1, 2]]
    runs = torch.tensor([[0.5, 0.6, 0.7], [0.1, 0.9, NAN], [0.2, NAN, NAN]])
    assert least_runs(runs, ["a"] * 3, {}) == [[], [1], [0, 1]]
    assert least_runs(runs, ["a"] * 3, {1: "asked for"}) == [[], [2]]
    assert least_runs(runs, ["a", "b", "a"], {}) == [[], [2]]
    assert layer_order(torch.tensor([0.3, 0.1, 0.2, 0.4]), ["a"] * 4, {}) == [1, 2, 0]
    assert layer_order(torch.tensor([0.3, 0.1, 0.2, 0.4]), ["a"] * 4, {1: "asked for"}) == [2, 0, 3]
    assert layer_order(torch.tensor([0.1, 0.2, 0.3]), ["conv", "attention", "conv"], {}) == [0]
    assert weakest(torch.tensor([[0.4, 0.1, 0.3, 0.2], [0.1, 0.2, 0.3, 0.4]]), 2) == [[1, 3], [0, 1]]
    assert weakest(torch.tensor([[0.4, 0.1, 0.3, 0.2]]), 2, sets=2) == [[1, 3]]


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_scale_of_scores_does_not_matter(scale):
    scores = torch.rand(3, 8, generator=torch.Generator().manual_seed(0))
    assert weakest(scores * scale, 4) == weakest(scores, 4)
