"""Every metric against its naive reference, and what every metric must leave alone."""

from functools import cache, partial
from itertools import combinations, pairwise

import pytest
import torch
from families import FAMILIES
from importance import naive
from importance.naive import batch_of, calibrated, row_by_row, subject_of, with_other_padding

from optimum_mllm_prune.importance import METRICS, Subject, companion
from optimum_mllm_prune.importance.block_influence import BlockInfluence
from optimum_mllm_prune.importance.registry import default_metric, metrics_for
from optimum_mllm_prune.importance.taylor import Taylor


# Those of method "hidden" are in test_hidden.py.
PAIRS = [(method, name) for name, methods in METRICS.items() for method in methods if method != "hidden"]
# Of whole layers in sequence: test_layer_metrics.py has their references.
IN_SEQUENCE = {"angular", "loss", "merge"}
SCORED = [pair for pair in PAIRS if pair[1] not in {"random", *IN_SEQUENCE}]
CALIBRATED = [pair for pair in PAIRS if METRICS[pair[1]][pair[0]].needs != "weights"]
GRADIENTS = [name for method, name in PAIRS if METRICS[name][method].needs == "backward"]


@cache
def model_of(family):
    return FAMILIES[family].build()


@cache
def scores_of(family, method, name):
    """Over two batches that contain padding."""
    model = model_of(family)
    return calibrated(subject_of(model), method, name, batches_of(family))


def batches_of(family):
    config = model_of(family).config
    return [batch_of(family, config), batch_of(family, config, seed=1, answers=(1, 2))]


@pytest.mark.parametrize("family", ["llava_llama_gqa", "llava_phi3", "llava_llama_biased"])
@pytest.mark.parametrize(("method", "name"), SCORED)
def test_it_is_its_reference(family, method, name):
    scores = scores_of(family, method, name)
    expected = getattr(naive, name)(subject_of(model_of(family)), batches_of(family))
    assert scores.keys() == expected.keys()
    for kind, found in scores.items():
        assert found.dtype == torch.float32
        # Sums that nearly cancel are right to a part of the largest.
        smallest = 1e-5 * expected[kind].max()
        torch.testing.assert_close(found.double(), expected[kind], rtol=1e-4, atol=float(smallest))


@pytest.mark.parametrize(("method", "name"), PAIRS)
@pytest.mark.parametrize("family", ["qwen3_5", "idefics2", "paligemma", "aria", "mllama"])
def test_it_scores_every_unit_of_every_block(family, method, name):
    model = model_of(family)
    subject = subject_of(model)
    scores = calibrated(subject, method, name, [batch_of(family, model.config)])
    shapes = {kind: tuple(found.shape) for kind, found in scores.items()}
    if method == "layer":
        number = len(subject.layers)
        runs = {"layer_runs": (number, number)} if METRICS[name][method].in_a_row else {}
        assert shapes == {"layers": (number,)} | runs
    else:
        assert shapes == {group.kind: (len(group.sites), group.units) for group in subject.groups}
    assert all(found.isfinite().all() and (found >= 0).all() and found.std() > 0 for found in scores.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_taylor_group_is_the_sum_of_weight_times_gradient_over_the_readers_columns(family):
    model = FAMILIES[family].build()
    batch = batch_of(family, model.config)
    subject = subject_of(model)
    scores = calibrated(subject, "width", "taylor_group", [batch])
    naive.loss(model.requires_grad_(True), batch).backward()
    for group in subject.groups:
        for site, found in zip(group.sites, scores[group.kind], strict=True):
            reader = model.get_parameter(site.reader.tensor)
            expected = (reader * reader.grad).detach().unflatten(1, (group.units, -1)).sum(dim=(0, 2)).abs()
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.max()))


@pytest.mark.parametrize(("method", "name"), CALIBRATED)
@pytest.mark.parametrize("family", ["llava_llama_gqa", "qwen2_5_vl", "qwen3_5"])
def test_what_stands_in_the_padding_does_not_matter(family, method, name):
    model = model_of(family)
    batch = batch_of(family, model.config)
    subject = subject_of(model)
    scores = calibrated(subject, method, name, [batch])
    others = calibrated(subject, method, name, [with_other_padding(batch)])
    for kind, found in scores.items():
        torch.testing.assert_close(others[kind], found, rtol=1e-5, atol=1e-6 * float(found.max()))


@pytest.mark.parametrize(("method", "name"), CALIBRATED)
def test_what_stands_in_the_text_does_matter(method, name):
    model = model_of("llava_llama_gqa")
    one, other = (calibrated(subject_of(model), method, name, [batch]) for batch in batches_of("llava_llama_gqa"))
    assert all(not torch.allclose(one[kind], other[kind], rtol=1e-2) for kind in one)


@pytest.mark.parametrize(("method", "name"), CALIBRATED)
def test_the_order_of_the_batches_does_not_matter(method, name):
    family = "llava_llama_gqa"
    turned = calibrated(subject_of(model_of(family)), method, name, batches_of(family)[::-1])
    for kind, found in scores_of(family, method, name).items():
        torch.testing.assert_close(turned[kind], found, rtol=1e-5, atol=1e-6 * float(found.max()))


@pytest.mark.parametrize(("method", "name"), CALIBRATED)
def test_how_rows_are_batched_matters_to_taylor_of_weights_alone(method, name):
    family = "llava_llama_gqa"
    whole = batch_of(family, model_of(family).config, answers=(4, 1))
    subject = subject_of(model_of(family))
    together, apart = (calibrated(subject, method, name, batches) for batches in ([whole], row_by_row(whole)))
    for kind, found in together.items():
        if name == "taylor":
            # |a + b| of two rows together, |a| + |b| apart.
            assert (apart[kind] >= found * (1 - 1e-4)).all()
            assert (apart[kind] > found * 1.1).any()
        elif METRICS[name][method].batch == "one":
            assert not torch.allclose(apart[kind], found, rtol=0.1)
        else:
            torch.testing.assert_close(apart[kind], found, rtol=1e-4, atol=1e-5 * float(found.max()))


@pytest.mark.parametrize("name", ["taylor", "taylor_group"])
def test_every_answer_token_weighs_the_same(name):
    family = "llava_llama_gqa"
    subject = subject_of(model_of(family))
    rows = row_by_row(batch_of(family, model_of(family).config, answers=(4, 1)))
    both, long, short = (calibrated(subject, "width", name, batches) for batches in (rows, rows[:1], rows[1:]))
    for kind, found in both.items():
        weighted = (4 * long[kind] + short[kind]) / 5
        if name == "taylor":
            torch.testing.assert_close(found, weighted)
        else:
            # Signs may differ between rows.
            assert (found <= weighted * (1 + 1e-4) + 1e-7).all()


@cache
def scores_as_batched(method, name):
    """By kind (sites of three models, units), over rows with long and short answers in the metric's batches."""
    family, found = "llava_llama_gqa", []
    for seed in range(3):
        model = FAMILIES[family].build(seed=seed)
        batch = batch_of(family, model.config, answers=(4, 1))
        batches = row_by_row(batch) if METRICS[name][method].batch == "one" else [batch]
        found.append(calibrated(subject_of(model, seed=seed), method, name, batches))
    return {kind: torch.stack([scores[kind] for scores in found]).flatten(0, -2) for kind in found[0]}


def rank_correlation(one, other):
    """Spearman's, the mean over rows."""
    ranks = [scores.argsort(dim=1).argsort(dim=1).double() for scores in (one, other)]
    return float(torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(*ranks, strict=True)]).mean())


@pytest.mark.parametrize(
    ("method", "one", "other"),
    [(method, *pair) for method in ("layer", "width") for pair in combinations(metrics_for(method), 2)],
)
def test_no_two_metrics_are_secretly_the_same(method, one, other):
    """Neither rises, nor falls, with the other, but for what rounding may turn round."""
    both = scores_as_batched(method, one), scores_as_batched(method, other)
    for kind in both[0].keys() & both[1].keys():
        assert abs(rank_correlation(both[0][kind], both[1][kind])) < 0.995, kind


@pytest.mark.parametrize("method", ["layer", "width"])
def test_chance_depends_on_the_seed_alone(method):
    random = partial(calibrated, method=method, name="random", batches=[])
    family = "llava_llama_gqa"
    first = random(subject_of(model_of(family), seed=1))
    again = random(subject_of(FAMILIES[family].build(seed=5), seed=1))
    other = random(subject_of(model_of(family), seed=2))
    for kind in first:
        assert torch.equal(first[kind], again[kind])
        assert not torch.equal(first[kind], other[kind])
        assert first[kind].unique().numel() == first[kind].numel()


@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.parametrize("family", ["llava_llama_gqa", "llava_phi3", "qwen3_vl", "qwen3_5"])
def test_recomputed_activations_give_the_same_scores(family, name):
    model = model_of(family)
    batch = batch_of(family, model.config)
    kept, recomputed = (
        calibrated(subject_of(model), "width", name, [batch], gradient_checkpointing=on) for on in (False, True)
    )
    for kind in kept:
        torch.testing.assert_close(recomputed[kind], kept[kind], rtol=1e-5, atol=1e-6 * float(kept[kind].max()))


class WatchedTaylor(Taylor):
    """Counts, whenever a gradient is complete, how many there are."""

    def __init__(self, subject):
        super().__init__(subject)
        self.alive = []

    def _reduce(self, kind, index, axis):
        reduce = super()._reduce(kind, index, axis)

        def watched(weight):
            self.alive.append(sum(p.grad is not None for p in self.subject.model.parameters()))
            reduce(weight)

        return watched


@pytest.mark.parametrize("checkpointing", [False, True])
def test_taylor_never_holds_two_gradients(checkpointing):
    model = FAMILIES["llava_llama_biased"].build()
    subject = subject_of(model)
    watched = WatchedTaylor(subject)
    naive.run_calibration(
        model,
        batches_of("llava_llama_biased"),
        [watched],
        subject.layers,
        backward=True,
        gradient_checkpointing=checkpointing,
    )
    tensors = {axis.tensor for group in subject.groups for site in group.sites for axis in site.axes}
    assert watched.alive == [1] * (len(tensors) * 2)
    expected = scores_of("llava_llama_biased", "width", "taylor")
    for kind, found in watched.scores().items():
        torch.testing.assert_close(found, expected[kind])


def test_taylor_group_makes_no_weight_gradient():
    model = FAMILIES["llava_llama_gqa"].build()
    made = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(made.append)
    calibrated(subject_of(model), "width", "taylor_group", batches_of("llava_llama_gqa"))
    assert made == []


def test_the_last_layer_is_not_seen_through_the_final_norm():
    model = model_of("llava_llama_gqa")
    batch = batch_of("llava_llama_gqa", model.config)
    last = calibrated(subject_of(model), "layer", "block_influence", [batch])["layers"][-1]
    with torch.no_grad():
        *_, before, normed = model(**batch.inputs, output_hidden_states=True).hidden_states
    real = batch.modality != 0
    wrong = 1 - torch.cosine_similarity(before[real], normed[real], dim=-1).mean()
    assert (last - wrong).abs() > 1e-3


class Stream(torch.nn.Module):
    """Layers that turn whatever comes into given states."""

    def __init__(self, *states):
        super().__init__()
        self.layers = torch.nn.ModuleList(Giving(state) for state in states[1:])
        self.first = states[0]

    def forward(self):
        hidden = self.first
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


class Giving(torch.nn.Module):
    def __init__(self, state):
        super().__init__()
        self.state = state

    def forward(self, hidden):
        return self.state


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_activations_in_half_precision_do_not_overflow(dtype):
    generator = torch.Generator().manual_seed(0)
    states = [(3e4 * torch.rand(1, 5, 512, generator=generator)).to(dtype) for _ in range(3)]
    model = Stream(*states)
    batch = naive.Batch({}, torch.zeros(1, 5), torch.full((1, 5), 2, dtype=torch.int8))
    influence = BlockInfluence(Subject(model, "layers", (), 0))
    influence.attach()
    influence.begin(batch)
    model()
    expected = [1 - torch.cosine_similarity(a.double(), b.double(), dim=-1).mean() for a, b in pairwise(states)]
    torch.testing.assert_close(influence.scores()["layers"].double(), torch.stack(expected), rtol=1e-4, atol=1e-6)


def test_a_layer_that_does_nothing_has_no_influence():
    state = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0))
    model = Stream(state, state, -state)
    influence = BlockInfluence(Subject(model, "layers", (), 0))
    influence.attach()
    influence.begin(naive.Batch({}, torch.zeros(1, 4), torch.full((1, 4), 2, dtype=torch.int8)))
    model()
    torch.testing.assert_close(influence.scores()["layers"], torch.tensor([0.0, 2.0]))


def test_the_defaults_and_the_papers_numbers_of_rows():
    assert (default_metric("layer"), default_metric("width")) == ("block_influence", "reconstruction")
    assert default_metric("hidden") == "activation"
    assert METRICS["taylor"]["width"].samples == 10
    assert METRICS["block_influence"]["layer"].samples == 50


@pytest.mark.parametrize(("method", "name"), PAIRS)
def test_the_companion_scores_the_other_method_in_the_same_passes(method, name):
    other = "width" if method == "layer" else "layer"
    passes = ["weights", "forward", "backward", "rows"]
    needed = METRICS[companion(method, name)][other].needs
    assert passes.index(needed) <= passes.index(METRICS[name][method].needs)
