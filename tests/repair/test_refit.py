"""Maps refitted layer by layer: against a naive version with whole passes, never worse, and what is left alone."""

import copy
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import scenes
import torch
from checkpoint import tiny_llava

from optimum_mllm_prune import MLLMPruner, PruningConfig, UserInputError
from optimum_mllm_prune.calibration.batches import make_batch
from optimum_mllm_prune.calibration.row_forms import normalize_row
from optimum_mllm_prune.evaluation import exact_match, generate_answers, reference_answers
from optimum_mllm_prune.repair import repair, repair_method
from optimum_mllm_prune.repair.least_squares import RIDGES
from optimum_mllm_prune.repair.refit import HELD_OUT
from optimum_mllm_prune.surgery import pruned_model


LAYERS = "model.language_model.layers"
# Rows of each map of the digit-scenes model.
ROWS = dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj", "down_proj"), 160) | dict.fromkeys(
    ("gate_proj", "up_proj"), 416
)
DIGITS = Path(__file__).parents[2] / "examples" / "digit_scenes" / "llava"


@cache
def data():
    return scenes.build(train=96, test=140, seed=21)


def rows(number=24):
    return [normalize_row(data()["train"][i]) for i in range(number)]


def pruner(**options):
    return MLLMPruner.from_pretrained(str(DIGITS), device="cpu", dtype="float32", **options)


def repaired(made, number=24, **wish):
    """The pruned model before and after its repair, and what was done."""
    plan = made.plan(PruningConfig(importance="magnitude_l2", **wish))
    cut = pruned_model(made.model, made.backbone(), plan, keep_original=True)
    mended = pruned_model(made.model, made.backbone(), plan, keep_original=True)
    return plan, cut, mended, repair(made.model, mended, made.backbone(), plan, made.processor, rows(number))


def seen(model, module, batch, of_input):
    found = []
    look = (lambda _, args: found.append(args[0])) if of_input else (lambda _, __, output: found.append(output))
    handle = (module.register_forward_pre_hook if of_input else module.register_forward_hook)(look)
    with torch.no_grad():
        model(**batch.inputs, use_cache=False)
    handle.remove()
    return found[0][0].double()


def test_every_map_in_turn_is_what_least_squares_makes_it():
    made = pruner()
    plan, naive, mended, done = repaired(made, 24, method="width", ratio=0.4)
    check(done.refits[:7], made, naive, mended, lambda name: kept_outputs(plan, name))
    # The first layer's q, k and v read what they read in the original.
    of_a_layer = [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
    found = [[name.rpartition(".")[2] for name in refit.modules] for refit in done.refits]
    assert found == of_a_layer[1:] + of_a_layer * (len(plan.kept_layers) - 1)


def test_where_the_stream_is_narrower_projector_and_all_layers_are_fitted():
    """What writes the stream is asked for the dimensions that stay, what reads it for all it gave."""
    made = pruner()
    plan, naive, mended, done = repaired(made, 24, method="hidden", ratio=0.3)
    stays = [i for i in range(160) if i not in set(plan.removed_hidden)]
    writers = ("o_proj", "down_proj", "linear_2")

    def wanted(name):
        map = name.rpartition(".")[2]
        return stays if map in writers else list(range(ROWS[map]))

    check(done.refits[:6], made, naive, mended, wanted)
    assert done.refits[0].modules == ("model.multi_modal_projector.linear_2",)
    assert len(done.refits) == 1 + 4 * len(plan.kept_layers)
    assert done.to_dict()["error_after"] < 0.3 * done.to_dict()["error_before"]


def check(refits, made, naive, mended, wanted):
    """Whole passes, one row at a time, dense float64 algebra: ridge by ridge, every fourth row decides."""
    batches = [make_batch(made.processor, [row]) for row in rows(24)]
    for refit in refits:
        theirs, ours = ([model.get_submodule(name) for name in refit.modules] for model in (made.model, naive))
        pairs = []
        for batch in batches:
            outputs = [
                seen(made.model, map, batch, False)[:, wanted(name)]
                for map, name in zip(theirs, refit.modules, strict=True)
            ]
            pairs.append((seen(naive, ours[0], batch, True), torch.cat(outputs, dim=1)))
        start = torch.cat([with_bias(map) for map in ours])
        if start.shape[1] > pairs[0][0].shape[1]:
            pairs = [(torch.cat([x, torch.ones(len(x), 1).double()], dim=1), y) for x, y in pairs]
        fit, held = [p for place, p in enumerate(pairs) if place % HELD_OUT != 3], pairs[3::HELD_OUT]
        errors = {ridge: error(solved(fit, start, ridge), held) for ridge in RIDGES}
        best = min(errors, key=errors.get)
        assert refit.before == pytest.approx(error(start, held), rel=1e-3)
        if errors[best] >= refit.before:
            assert refit.ridge is None
            continue
        assert refit.ridge == best
        assert refit.after == pytest.approx(errors[best], rel=1e-3)
        sizes = [map.out_features for map in ours]
        for map, name, weight in zip(ours, refit.modules, solved(fit, start, best).split(sizes), strict=True):
            map.weight = torch.nn.Parameter(weight[:, : map.in_features].float())
            if map.bias is not None:
                map.bias = torch.nn.Parameter(weight[:, -1].float())
            assert torch.allclose(map.weight, mended.get_submodule(name).weight, atol=2e-3)


def with_bias(map):
    weight = map.weight.double()
    return weight if map.bias is None else torch.cat([weight, map.bias.double().unsqueeze(1)], dim=1)


def kept_outputs(plan, name):
    """Rows of a map of the original that stay: heads of 20 numbers, channels of one."""
    block, map = name.rsplit(".", 1)
    if map in ("gate_proj", "up_proj"):
        gone = set(plan.removed_channels[block])
        return [row for row in range(ROWS[map]) if row not in gone]
    if map in ("q_proj", "k_proj", "v_proj"):
        gone, size = set(plan.removed_heads.get(block, ())), 20
        return [row for row in range(ROWS[map]) if row // size not in gone]
    return list(range(ROWS[map]))


def solved(pairs, start, ridge):
    x, y = (torch.cat(side) for side in zip(*pairs, strict=True))
    gram = x.T @ x
    strength = ridge * gram.diagonal().mean()
    return torch.linalg.solve(gram + strength * torch.eye(len(gram), dtype=gram.dtype), x.T @ y + strength * start.T).T


def error(weight, pairs):
    x, y = (torch.cat(side) for side in zip(*pairs, strict=True))
    return ((x @ weight.T - y).square().sum() / y.square().sum()).item()


@pytest.mark.parametrize("wish", [{"method": "width", "ratio": 0.3}, {"method": "mixed", "ratio": 0.5}])
def test_never_worse_on_rows_that_decide(wish):
    _, _, _, done = repaired(pruner(), **wish)
    assert all(refit.after <= refit.before for refit in done.refits)
    told = done.to_dict()
    maps = sum(len(refit.modules) for refit in done.refits)
    assert told["refitted"] + len(told["left_alone"]) == maps
    assert told["refitted"] > 0.7 * maps
    assert told["error_after"] < 0.8 * told["error_before"]
    assert (told["method"], told["rows"]) == ("least-squares", 24)
    assert told["tokens"] > 24 * 20


@pytest.mark.parametrize("method", ["least-squares", "linear-map"])
def test_before_removed_layers_the_stream_after_them_is_the_target(method):
    """Against dense float64 algebra with whole passes; W is fitted itself, or a map T of what it gives: W' = T W."""
    made = pruner()
    plan = replace(made.plan(PruningConfig(num_layers=2, importance="random", repair=method)), removed_layers=[3, 4])
    cut = pruned_model(made.model, made.backbone(), plan, keep_original=True)
    mended = pruned_model(made.model, made.backbone(), plan, keep_original=True)
    done = repair(made.model, mended, made.backbone(), plan, made.processor, rows(24))
    refit = done.refits[0]
    assert refit.modules == (f"{LAYERS}.2.mlp.down_proj",) and done.method == method
    behind = 4 * (len(plan.kept_layers) - 3)
    assert len(done.refits) == (1 + behind if method == "least-squares" else 1)

    ours, theirs = cut.get_submodule(LAYERS)[2], made.model.get_submodule(LAYERS)[4]
    pairs = []
    for row in rows(24):
        batch = make_batch(made.processor, [row])
        given, leaving = seen(cut, ours.mlp.down_proj, batch, False), seen(cut, ours, batch, False)
        x = seen(cut, ours.mlp.down_proj, batch, True) if method == "least-squares" else given
        wanted = seen(made.model, theirs, batch, False)
        size = wanted.square().mean(dim=-1, keepdim=True).sqrt()
        pairs.append((x / size, (wanted - (leaving - given)) / size))
    held = pairs[3::HELD_OUT]
    fit = [pair for place, pair in enumerate(pairs) if place % HELD_OUT != 3]
    weight = ours.mlp.down_proj.weight.double()
    start = weight if method == "least-squares" else torch.eye(len(weight), dtype=torch.float64)
    errors = {ridge: error(solved(fit, start, ridge), held) for ridge in RIDGES}
    best = min(errors, key=errors.get)
    assert refit.before == pytest.approx(error(start, held), rel=1e-3)
    if refit.ridge is None:
        assert torch.equal(mended.get_submodule(refit.modules[0]).weight, ours.mlp.down_proj.weight)
        return
    assert refit.ridge == best
    assert refit.after == pytest.approx(errors[best], rel=1e-3)
    expected = solved(fit, start, best)
    expected = expected if method == "least-squares" else expected @ weight
    assert torch.allclose(mended.get_submodule(refit.modules[0]).weight.double(), expected, atol=2e-3)


def test_worse_answers_undo_everything():
    """Targets that are not the original's: the maps fit them better, the answers get worse."""
    made = pruner()
    plan = made.plan(PruningConfig(importance="magnitude_l2", ratio=0.15))
    cut = pruned_model(made.model, made.backbone(), plan, keep_original=True)
    before = {name: tensor.clone() for name, tensor in cut.state_dict().items()}
    other = copy.deepcopy(made.model)
    with torch.no_grad():
        for layer in other.get_submodule(LAYERS):
            layer.mlp.down_proj.weight.mul_(-3)
    done = repair(other, cut, made.backbone(), plan, made.processor, rows(24))
    assert all(torch.equal(tensor, before[name]) for name, tensor in cut.state_dict().items())
    assert done.notes == ["left as it was cut: repaired, it gave the answers of held-out rows a lower likelihood"]
    assert done.to_dict()["refitted"] == 0 and done.loss_before == done.loss_after
    assert all(refit.after == refit.before for refit in done.refits)


def test_the_original_is_not_touched():
    made = pruner()
    before = {name: tensor.clone() for name, tensor in made.model.state_dict().items()}
    _, cut, mended, _ = repaired(made, method="width", ratio=0.3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.model.state_dict().items())
    changed = {name for name, tensor in mended.state_dict().items() if not torch.equal(tensor, cut.state_dict()[name])}
    assert {name.rpartition("_proj.")[0].rpartition(".")[2] for name in changed} == set("qkvo") | {
        "gate",
        "up",
        "down",
    }


@pytest.mark.parametrize("ratio", [pytest.param(0.3, marks=pytest.mark.slow), 0.4])
def test_answers_come_back(ratio):
    """The gain on the embedded model, on rows that nothing was fitted to."""
    made = pruner()
    plan = made.plan(PruningConfig(method="width", importance="taylor", ratio=ratio), rows(10))
    cut = pruned_model(made.model, made.backbone(), plan, keep_original=True)
    test = data()["test"]

    def accuracy(model):
        return exact_match(generate_answers(model, made.processor, test), reference_answers(test))

    before = accuracy(cut)
    repair(made.model, cut, made.backbone(), plan, made.processor, rows(96))
    assert before < 90 < accuracy(cut)


def test_too_few_rows_are_told():
    _, _, _, done = repaired(pruner(), 4, method="width", ratio=0.2)
    (note,) = done.notes
    assert note.startswith("4 rows hold fewer tokens than the widest map has inputs (")
    needed = int(note.split("give ")[1].split(" ")[0])
    assert 4 < needed < 40
    assert not repaired(pruner(), needed + 2, method="width", ratio=0.2)[3].notes


@pytest.mark.slow
def test_sixteen_bits():
    made = MLLMPruner.from_pretrained(str(DIGITS), device="cpu", dtype="bfloat16")
    _, _, mended, done = repaired(made, method="width", ratio=0.3)
    assert all(parameter.dtype == torch.bfloat16 for parameter in mended.parameters())
    assert done.to_dict()["error_after"] < 0.7 * done.to_dict()["error_before"]


def test_biases_are_refitted_too(monkeypatch):
    """A map with a bias whose outputs were shifted: the bias takes the shift back."""
    # The answers of a model with random weights tell nothing.
    monkeypatch.setattr("optimum_mllm_prune.repair.refit.surely_less_likely", lambda *_: False)
    config = tiny_llava.model().config
    config.text_config.mlp_bias = True
    torch.manual_seed(0)
    made = MLLMPruner(type(tiny_llava.model())(config).eval(), tiny_llava.processor())
    with torch.no_grad():
        for layer in made.model.model.language_model.layers:
            layer.mlp.down_proj.bias.normal_()
    plan = made.plan(PruningConfig(ratio=0.1, importance="magnitude_l2", head_share=0.0))
    other = pruned_model(made.model, made.backbone(), plan, keep_original=True)
    shift = torch.randn(config.text_config.hidden_size)
    with torch.no_grad():
        # A copy: what loses nothing is shared with the original.
        down = other.model.language_model.layers[0].mlp.down_proj
        down.bias = torch.nn.Parameter(down.bias - shift)
    done = repair(made.model, other, made.backbone(), plan, made.processor, rows(12))
    refit = next(r for r in done.refits if r.modules == (f"{LAYERS}.0.mlp.down_proj",))
    assert refit.before > 0.5 and refit.after < 0.01
    mended = other.model.language_model.layers[0].mlp.down_proj.bias
    original = made.model.model.language_model.layers[0].mlp.down_proj.bias
    assert torch.allclose(mended, original, atol=0.1 * shift.abs().max())


class TestPruner:
    def test_with_rows_it_is_repaired(self, tmp_path):
        made = pruner()
        made.prune(PruningConfig(ratio=0.3, importance="magnitude_l2", repair_samples=16), rows())
        assert made.repair.rows == 16
        report = made.save_pretrained(tmp_path / "out")
        assert report.repair["refitted"] > 0
        assert "- repaired: " in (tmp_path / "out" / "README.md").read_text()
        assert report.verification.max_abs_logit_difference == 0
        assert made.timings["repair"] > 0

    @pytest.mark.parametrize(
        ("wish", "dataset"),
        [
            ({"repair": "none"}, True),
            ({}, False),
        ],
        ids=["not wanted", "no rows"],
    )
    def test_it_is_not_repaired(self, wish, dataset):
        made = pruner()
        made.prune(PruningConfig(**{"importance": "magnitude_l2", **wish}), rows() if dataset else None)
        assert made.repair is None

    def test_asked_for_without_rows(self):
        with pytest.raises(UserInputError) as told:
            pruner().prune(PruningConfig(importance="magnitude_l2", repair="least-squares"))
        assert str(told.value) == "a repair reads rows: give a dataset (and a processor), or leave the repair out."

    def test_when_it_is_wanted(self):
        wanted = {
            key: repair_method(PruningConfig(num_layers=2, repair=key)) for key in ("auto", "none", "linear-map")
        }
        assert wanted == {"auto": "least-squares", "none": None, "linear-map": "linear-map"}
        assert repair_method(PruningConfig(num_layers=2, repair="least-squares")) == "least-squares"
        for method in ("width", "mixed", "hidden"):
            assert repair_method(PruningConfig(method=method)) == "least-squares"
        assert repair_method(PruningConfig(num_layers=2, importance="merge")) is None
