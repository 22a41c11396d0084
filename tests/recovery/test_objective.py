"""Every loss of a batch against its definition in float64: padding, image and prompt tokens are all present."""

from functools import cache

import pytest
import torch
from checkpoint import tiny_llava
from recovery import naive, tiny

from optimum_mllm_prune.calibration.batches import Modality
from optimum_mllm_prune.recovery.objective import BatchObjective
from optimum_mllm_prune.recovery.recipe import PRESETS, TERMS, Recipe, loss_weights
from optimum_mllm_prune.recovery.tap import Tap
from optimum_mllm_prune.recovery.teachers.guidance import StoredGuidance
from optimum_mllm_prune.recovery.teachers.live import LiveTeacher
from optimum_mllm_prune.recovery.tokens import counts


MAP = list(enumerate(tiny.KEPT))


def decoder_layers(model):
    return model.get_decoder().layers


@cache
def models():
    return tiny.student(), tiny.teacher()


@cache
def batch():
    return tiny.batch()


@cache
def references():
    with torch.no_grad():
        return tuple(naive.outputs(model, batch(), decoder_layers) for model in models())


def found(recipe, student=None, layer_map=MAP, guidance=None, number=None):
    """Loss and terms as the trainer takes them."""
    student, teacher = student or models()[0], models()[1]
    live = LiveTeacher(teacher, [original for _, original in layer_map])
    said = guidance or live.guide(batch().inputs, batch().modality, torch.arange(3), recipe)
    total = counts(batch().modality) if number is None else number
    objective = BatchObjective(recipe, batch().labels, batch().modality, total, said, layer_map)
    return objective(Tap(student, decoder_layers(student), [own for own, _ in layer_map])(**batch().inputs))


def test_the_batch_holds_all_kinds_of_tokens():
    assert {Modality(kind) for kind in batch().modality.unique().tolist()} == set(Modality)
    assert len(set((batch().modality == Modality.ANSWER).sum(dim=1).tolist())) > 1


ALL = "sft=0.1,logits=0.2,hidden=0.3,layers=0.4"


@pytest.mark.parametrize("loss", [*PRESETS, ALL, "layers=1", "logits=1,hidden=2"])
def test_every_preset_is_its_definition(loss):
    recipe = Recipe(loss_weights(loss))
    with torch.no_grad():
        total, terms = found(recipe)
    expected = naive.terms(*references(), batch(), recipe, tiny.KEPT)
    for name, term in zip(TERMS, terms, strict=True):
        assert term.item() == pytest.approx(float(expected.get(name, 0.0)), rel=1e-4)
    whole = sum(weight * float(expected[name]) for name, weight in recipe.weights.items())
    assert total.item() == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize("tokens", ["answer", "text"])
@pytest.mark.parametrize(("divergence", "temperature"), [("forward_kl", 1.0), ("reverse_kl", 2.0), ("jsd", 3.0)])
def test_divergences(divergence, temperature, tokens):
    recipe = Recipe({"sft": 0.5, "logits": 0.5}, divergence, temperature, beta=0.3, logits_tokens=tokens)
    _, terms = found(recipe)
    expected = naive.terms(*references(), batch(), recipe)
    assert terms[:2].tolist() == pytest.approx([float(expected["sft"]), float(expected["logits"])], rel=1e-4)


@pytest.mark.parametrize("tokens", ["answer", "text", "all"])
@pytest.mark.parametrize("distance", ["mse", "cosine"])
def test_distances(distance, tokens):
    recipe = Recipe({"hidden": 1.0, "layers": 1.0}, distance=distance, hidden_tokens=tokens)
    _, terms = found(recipe)
    expected = naive.terms(*references(), batch(), recipe, tiny.KEPT)
    assert terms[2:].tolist() == pytest.approx([float(expected["hidden"]), float(expected["layers"])], rel=1e-4)


def test_layers_are_matched_by_where_they_came_from():
    recipe = Recipe({"layers": 1.0}, hidden_tokens="all")
    _, through_map = found(recipe)
    _, equal = found(recipe, layer_map=[(own, own) for own, _ in MAP])
    expected = naive.terms(*references(), batch(), recipe, tiny.KEPT)["layers"]
    assert through_map[3].item() == pytest.approx(float(expected), rel=1e-4)
    assert abs(equal[3] - through_map[3]) > 100 * 1e-4 * through_map[3]
    # Below the first removed layer student and teacher are the same.
    _, first = found(recipe, layer_map=MAP[:1])
    assert first[3] < 1e-8


@pytest.mark.parametrize("loss", [ALL, "sft", "kd", "sft+hidden+kd"])
def test_gradients_are_those_of_the_definition(loss):
    recipe = Recipe(loss_weights(loss), hidden_tokens="text")
    student = tiny.student()
    total, _ = found(recipe, student)
    total.backward()
    double = tiny.student().double()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(naive.copy, "deepcopy", lambda model: model)
        own = naive.outputs(double, batch(), decoder_layers)
    expected = naive.terms(own, references()[1], batch(), recipe, tiny.KEPT)
    sum(weight * expected[name] for name, weight in recipe.weights.items()).backward()
    for (name, one), other in zip(student.named_parameters(), double.parameters(), strict=True):
        if other.grad is None:
            assert one.grad is None or not one.grad.any(), name
        else:
            scale = float(other.grad.abs().max())
            torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-3, atol=2e-4 * scale + 1e-7, msg=name)


def test_no_logits_of_a_whole_sequence_are_made(monkeypatch):
    made = []
    for model in models():
        head, own = model.get_output_embeddings(), model.get_output_embeddings().forward
        monkeypatch.setattr(
            head, "forward", lambda states, own=own: made.append(states[..., 0].numel()) or own(states)
        )
    found(Recipe(loss_weights("sft+hidden+kd")))
    kept = int((batch().modality == Modality.ANSWER).sum())
    assert sorted(made) == [1, 1, kept, kept]


def test_counts_of_a_whole_step_divide():
    recipe = Recipe(loss_weights("sft+hidden+kd"), hidden_tokens="all", logits_tokens="text")
    own = counts(batch().modality)
    total, terms = found(recipe)
    more, smaller = found(recipe, number=4 * own)
    torch.testing.assert_close(4 * more, total)
    torch.testing.assert_close(4 * smaller, terms)


def test_a_batch_without_answers_costs_nothing(monkeypatch):
    empty = tiny.batch()
    empty.labels.fill_(-100)
    empty.modality[empty.modality == Modality.ANSWER] = Modality.PROMPT
    student = tiny.student()
    monkeypatch.setitem(globals(), "batch", lambda: empty)
    total, terms = found(Recipe(loss_weights("sft+hidden+kd")), student)
    assert total == 0 and terms.tolist() == [0, 0, 0, 0]
    total.backward()
    gradients = [parameter.grad for parameter in student.parameters() if parameter.grad is not None]
    assert gradients and not any(gradient.any() for gradient in gradients)


def test_a_cache_of_the_whole_vocabulary_is_the_teacher():
    recipe = Recipe(loss_weights("sft+hidden+kd"))
    live = LiveTeacher(models()[1]).guide(batch().inputs, batch().modality, torch.arange(3), recipe)
    log_probs = (live.head(live.before_head).float() / recipe.temperature).log_softmax(-1)
    ordered = log_probs.sort(dim=-1, descending=True)
    rest = torch.full((len(log_probs), 1), float("-inf"))
    stored = StoredGuidance(ordered.indices, torch.cat([ordered.values, rest], dim=-1), live.final_states)
    one, other = found(recipe, guidance=stored), found(recipe, guidance=live)
    torch.testing.assert_close(one, other)


def test_a_bridge_leads_from_one_size_to_the_other():
    recipe = Recipe({"hidden": 1.0, "layers": 1.0})
    bridge = torch.nn.ModuleDict({name: torch.nn.Linear(160, 160, bias=False) for name in ("final", "layers")})
    live = LiveTeacher(models()[1], tiny.KEPT)
    said = live.guide(batch().inputs, batch().modality, torch.arange(3), recipe)
    student = models()[0]
    objective = BatchObjective(recipe, batch().labels, batch().modality, counts(batch().modality), said, MAP, bridge)
    _, terms = objective(Tap(student, decoder_layers(student), range(6))(**batch().inputs))
    (_, final, layers), teacher = references()
    with torch.no_grad():
        moved = [bridge["final"].weight.double(), bridge["layers"].weight.double()]
    own = (None, final @ moved[0].T, {number: states @ moved[1].T for number, states in layers.items()})
    expected = naive.terms(own, teacher, batch(), recipe, tiny.KEPT)
    assert terms[2:].tolist() == pytest.approx([float(expected["hidden"]), float(expected["layers"])], rel=1e-4)


def test_the_teacher_of_another_vocabulary_is_refused():
    teacher = LiveTeacher(tiny_llava.model())
    with pytest.raises(ValueError, match=r"the teacher's vocabulary has 384 tokens and the student's 1,000: logits"):
        teacher.require(Recipe({"logits": 1.0}), 1000)
    teacher.require(Recipe({"hidden": 1.0}), 1000)
