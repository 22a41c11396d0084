"""RecoveryTrainer on the tiny model: what it minimises, what it changes and what it leaves alone."""

import logging

import pytest
import torch
from checkpoint import tiny_llava
from recovery import naive, tiny
from transformers import AutoModelForImageTextToText

from optimum_mllm_prune.calibration.batches import Modality
from optimum_mllm_prune.errors import UserInputError
from optimum_mllm_prune.recovery.batching import NumberedRows, RowCollator
from optimum_mllm_prune.recovery.recipe import PRESETS, TERMS, Recipe, loss_weights
from optimum_mllm_prune.recovery.trainer import RecoveryTrainer, few_rows


ALL = "sft=0.1,logits=0.2,hidden=0.3,layers=0.4"
LOG = "optimum.mllm_prune.recovery"


def decoder_layers(model):
    return model.get_decoder().layers


def collated(number=3):
    numbered = NumberedRows(tiny.rows(number))
    return RowCollator(tiny.processor())([numbered[i] for i in range(number)])


def equal_states(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("loss", [*PRESETS, ALL])
def test_the_loss_is_its_definition(tmp_path, loss):
    trainer = tiny.trainer(tmp_path, loss=loss, plan=tiny.plan(), hidden_tokens="text")
    total, terms = trainer.compute_loss(trainer.model, collated(), return_outputs=True)
    recipe = Recipe(loss_weights(loss), hidden_tokens="text")
    with torch.no_grad():
        own, other = (naive.outputs(model, tiny.batch(), decoder_layers) for model in (tiny.student(), tiny.teacher()))
        expected = naive.terms(own, other, tiny.batch(), recipe, tiny.KEPT)
    assert {name: term.item() for name, term in terms.items() if name in expected} == pytest.approx(
        {name: float(term) for name, term in expected.items()}, rel=1e-4
    )
    whole = sum(weight * float(expected[name]) for name, weight in recipe.weights.items())
    assert total.item() == pytest.approx(whole, rel=1e-4)


def test_training_lowers_the_loss_and_the_teacher_stays(tmp_path):
    teacher = tiny.teacher()
    before = tiny.state(teacher)
    trainer = tiny.trainer(tmp_path, teacher=teacher.train(), max_steps=12, loss="sft+hidden+kd")
    assert not teacher.training
    trainer.train()
    losses = tiny.logged(trainer)
    assert len(losses) == 12 and sum(losses[-3:]) < 0.9 * sum(losses[:3])
    assert not teacher.training and not any(parameter.requires_grad for parameter in teacher.parameters())
    assert equal_states(teacher.state_dict(), before)
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("train", ["projector", "lora", "full"])
@pytest.mark.parametrize("vision", [False, True])
def test_only_what_is_asked_changes(tmp_path, train, vision):
    before = tiny.student().state_dict()
    trainer = tiny.trainer(tmp_path, train=train, train_vision=vision, loss="sft+hidden")
    parts = trainer.student.parts
    trainer.train()
    after = trainer.plain_model().state_dict()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    backbone = changed & parts.backbone_parameters
    assert changed >= parts.projector_parameters
    assert bool(changed & parts.tower_parameters) == vision
    assert bool(backbone) == (train != "projector")
    linears = {f"{name}.weight" for name in parts.linears}
    assert train != "lora" or backbone == linears


def test_the_terms_are_logged_and_add_up(tmp_path):
    trainer = tiny.trainer(
        tmp_path, loss=ALL, plan=tiny.plan(), max_steps=5, logging_steps=2, gradient_accumulation_steps=2
    )
    trainer.train()
    weights = loss_weights(ALL)
    assert [entry["step"] for entry in trainer.state.log_history] == [1, 2, 4, 5]
    for entry in trainer.state.log_history[:-1]:
        assert {name for name in entry if name.startswith("loss_")} == {f"loss_{name}" for name in weights}
        assert sum(weight * entry[f"loss_{name}"] for name, weight in weights.items()) == pytest.approx(
            entry["loss"], rel=1e-4
        )


def test_only_terms_that_count_are_logged(tmp_path):
    trainer = tiny.trainer(tmp_path, loss="sft")
    trainer.train()
    assert {name for name in trainer.state.log_history[0] if name.startswith("loss_")} == {"loss_sft"}


@pytest.mark.parametrize("train", ["projector", "lora", "full"])
@pytest.mark.parametrize("rate", [None, 7e-3])
def test_the_projector_may_learn_at_another_rate(tmp_path, train, rate):
    trainer = tiny.trainer(tmp_path, train=train, projector_learning_rate=rate, weight_decay=0.1)
    groups = trainer.create_optimizer().param_groups
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    rates = {names[id(parameter)]: group["lr"] for group in groups for parameter in group["params"]}
    decays = {names[id(parameter)]: group["weight_decay"] for group in groups for parameter in group["params"]}
    assert rates.keys() == trained
    for name in trained:
        own = trainer.student.is_projector(name)
        assert rates[name] == (rate if own and rate is not None else 1e-3)
        assert decays[name] == (0.0 if name.endswith("bias") or "norm" in name else 0.1)


def test_the_schedule_moves_both_rates(tmp_path):
    trainer = tiny.trainer(
        tmp_path, loss="sft", max_steps=4, projector_learning_rate=1e-2, lr_scheduler_type="linear", train="projector"
    )
    trainer.train()
    assert {group["lr"] for group in trainer.optimizer.param_groups if group["params"]} == {0.0}
    assert all(group["initial_lr"] == 1e-2 for group in trainer.optimizer.param_groups if group["params"])


WAYS = {"4x1": (4, 1), "2x2": (2, 2), "1x4": (1, 4)}


def accumulated(folder, way, **given):
    size, steps = WAYS[way]
    trainer = tiny.trainer(
        folder,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=steps,
        optim="sgd",
        learning_rate=0.05,
        max_grad_norm=0.5,
        **given,
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("loss", "tokens"), [("sft", "answer"), ("sft+hidden+kd", "text"), (ALL, "all")], ids=["sft", "three", "all"]
)
def test_accumulation_changes_nothing(tmp_path, loss, tokens):
    logits_tokens = "answer" if tokens == "answer" else "text"
    wanted = {"loss": loss, "hidden_tokens": tokens, "logits_tokens": logits_tokens, "plan": tiny.plan()}
    first, *others = (accumulated(tmp_path, way, **wanted) for way in WAYS)
    lengths = [int((tiny.batch(12).modality[row] == Modality.ANSWER).sum()) for row in range(12)]
    assert len(set(lengths)) > 3
    before = tiny.student().state_dict()
    for other in others:
        for name in ("loss", "grad_norm", *(f"loss_{term}" for term in loss_weights(loss))):
            assert tiny.logged(other, name) == pytest.approx(tiny.logged(first, name), rel=2e-4)
        for name, tensor in other.model.state_dict().items():
            own = first.model.state_dict()[name]
            torch.testing.assert_close(tensor, own, rtol=1e-4, atol=1e-6, msg=name)
    assert any((tensor - before[name]).abs().max() > 1e-4 for name, tensor in first.model.state_dict().items())


@pytest.mark.parametrize("train", ["projector", "lora", "full"])
def test_gradient_checkpointing_changes_nothing(tmp_path, train):
    found = []
    for on in (False, True):
        trainer = tiny.trainer(
            tmp_path,
            gradient_checkpointing=on,
            loss=ALL,
            plan=tiny.plan(),
            train=train,
            lora_dropout=0.0,
            max_steps=2,
            optim="sgd",
        )
        trainer.train()
        found.append((tiny.logged(trainer), tiny.logged(trainer, "grad_norm"), trainer.model.state_dict()))
    (losses, norms, weights), (other_losses, other_norms, other_weights) = found
    assert losses == pytest.approx(other_losses, rel=1e-5) and norms == pytest.approx(other_norms, rel=1e-4)
    for name, tensor in weights.items():
        torch.testing.assert_close(other_weights[name], tensor, rtol=1e-5, atol=1e-7, msg=name)


def test_a_loss_that_is_no_number_ends_the_training(tmp_path):
    model = tiny.student()
    trainer = tiny.trainer(tmp_path, model=model, loss="sft", learning_rate=0.25)
    model.get_decoder().norm.weight.data.fill_(float("nan"))
    before = tiny.state(model)
    with pytest.raises(UserInputError) as caught:
        trainer.train()
    assert str(caught.value) == (
        "the loss is nan at step 1: lower the learning rate (now 0.25) or train in bfloat16 or float32; "
        "checkpoints up to here are kept."
    )
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) or tensor.isnan().any() for name, tensor in before.items())


def test_the_evaluation_takes_the_same_loss(tmp_path):
    when = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 4}
    trainer = tiny.trainer(tmp_path, loss="sft+hidden+kd", eval_dataset=tiny.rows(4), **when)
    expected = trainer.compute_loss(trainer.model.eval(), collated(4)).item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
    trainer.train()
    assert len(tiny.logged(trainer, "eval_loss")) == 2
    # What evaluation finds is no part of what the training logs.
    weights = loss_weights("sft+hidden+kd")
    for entry in trainer.state.log_history:
        if "loss" in entry:
            terms = sum(weight * entry[f"loss_{name}"] for name, weight in weights.items())
            assert terms == pytest.approx(entry["loss"], rel=1e-4)


@pytest.mark.parametrize("train", ["projector", "lora", "full"])
def test_rows_with_and_without_images_train_and_are_evaluated(tmp_path, train):
    own = {"train_dataset": tiny.mixed_rows(), "eval_dataset": tiny.mixed_rows(8), "per_device_eval_batch_size": 2}
    trainer = tiny.trainer(tmp_path, max_steps=6, train=train, **own)
    trainer.train()
    assert len(tiny.logged(trainer)) == 6
    assert trainer.evaluate()["eval_loss"] > 0


def test_few_rows_are_drawn_once(tmp_path):
    trainer = tiny.trainer(tmp_path, fraction=0.5, seed=3)
    assert len(trainer.train_dataset) == 6
    again = few_rows(tiny.rows(), tiny.arguments(tmp_path, fraction=0.5, seed=3))
    assert [row["messages"] for row in again] == [row["messages"] for row in trainer.train_dataset.rows]
    kinds = few_rows(tiny_llava.rows(), tiny.arguments(tmp_path, max_samples=7, stratify_by="kind")).column("kind")
    assert len(set(kinds)) == 7


@pytest.mark.parametrize("train", ["projector", "lora", "full"])
def test_what_is_saved_is_a_plain_checkpoint(tmp_path, train):
    trainer = tiny.trainer(tmp_path / "training", train=train, loss="sft+kd")
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    files = {path.name for path in (tmp_path / "saved").iterdir()}
    assert not any(name.endswith((".bin", ".pt", ".pth", ".pkl")) for name in files)
    assert {"model.safetensors", "config.json", "processor_config.json"} <= files
    assert not any("adapter" in name for name in files)
    loaded, report = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(report.values())
    assert equal_states(loaded.state_dict(), trainer.student.base.state_dict())
    assert "forward" not in vars(trainer.student.base)
    inputs = tiny.batch().inputs
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(**inputs).logits, trainer.student.base(**inputs).logits)


def wide_teacher():
    """Another hidden size, same vocabulary and layers."""
    config = tiny_llava.model().config
    config.text_config.hidden_size = 80
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForImageTextToText.from_config(config)


@pytest.mark.parametrize("train", ["projector", "lora", "full"])
def test_another_hidden_size_is_bridged_and_the_bridge_stays_behind(tmp_path, train):
    trainer = tiny.trainer(
        tmp_path / "training", train=train, loss="hidden=1,layers=1", teacher=wide_teacher(), plan=tiny.plan()
    )
    trainer.create_optimizer()
    optimised = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    trained = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    bridges = {name: parameter for name, parameter in trained.items() if "recovery_bridge" in name}
    assert len(bridges) == 2 and all(id(parameter) in optimised for parameter in bridges.values())
    before = {name: parameter.detach().clone() for name, parameter in bridges.items()}
    trainer.train()
    assert all(not torch.equal(parameter, before[name]) for name, parameter in bridges.items())
    trainer.save_model(str(tmp_path / "saved"))
    _, report = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(report.values())


def test_training_checkpoints_hold_neither_teacher_nor_arguments(tmp_path):
    trainer = tiny.trainer(tmp_path, save_strategy="steps", save_steps=2, loss="sft+hidden", teacher=wide_teacher())
    trainer.train()
    folder = tmp_path / "checkpoint-2"
    assert not (folder / "training_args.bin").exists()
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    own = sum(tensor.nbytes for tensor in trainer.model.state_dict().values())
    assert weights < 1.05 * own


@pytest.mark.parametrize(("dtype", "bf16"), [(torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)])
def test_training_in_16_bits_is_warned_of(tmp_path, caplog, monkeypatch, dtype, bf16):
    monkeypatch.setattr(logging.getLogger("optimum"), "propagate", True)
    with caplog.at_level(logging.WARNING, logger=LOG):
        trainer = tiny.trainer(
            tmp_path, model=tiny.student().to(dtype), bf16=bf16, loss="sft+hidden+kd", train="lora", max_steps=1
        )
    warned = any("Weights train in 16 bits, where small updates are lost" in text for text in caplog.messages)
    assert warned == (dtype == torch.bfloat16 and not bf16)
    trainer.train()
    assert torch.tensor(tiny.logged(trainer)).isfinite().all()


def test_a_teacher_may_have_another_format(tmp_path):
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        trainer = tiny.trainer(tmp_path, teacher=tiny.teacher().to(dtype), loss="sft+hidden+kd")
        trainer.train()
        losses.append(tiny.logged(trainer))
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


WRONG = [
    ({"teacher": None, "loss": "kd"}, "this loss looks at the unpruned model: give a teacher, or use the loss 'sft'."),
    ({"loss": "layers=1"}, "the loss term 'layers' must know where each layer came from: give the pruning plan."),
]


@pytest.mark.parametrize(("given", "text"), WRONG)
def test_what_is_missing_is_told(tmp_path, given, text):
    with pytest.raises(UserInputError) as caught:
        tiny.trainer(tmp_path, **given)
    assert str(caught.value) == text


def test_a_plan_of_another_model_is_told(tmp_path):
    with pytest.raises(UserInputError, match="the plan leaves 6 layers, the model has 8: give the plan it was"):
        tiny.trainer(tmp_path, model=tiny.teacher(), loss="layers=1", plan=tiny.plan())


def test_a_missing_processor_is_told(tmp_path):
    with pytest.raises(UserInputError, match="rows cannot be read without a processor: give processing_class"):
        RecoveryTrainer(model=tiny.student(), args=tiny.arguments(tmp_path, loss="sft"), train_dataset=tiny.rows())


def test_terms_have_the_order_of_their_names():
    assert TERMS == ("sft", "logits", "hidden", "layers")


class TestEvaluating:
    def test_several_sets_by_name(self, tmp_path):
        own = {"few": tiny.raw_rows(2), "more": tiny.rows(4)}
        found = tiny.trainer(tmp_path, eval_dataset=own, loss="sft+kd").evaluate()
        assert {"eval_few_loss", "eval_more_loss"} <= found.keys()

    def test_rows_given_when_it_is_asked(self, tmp_path):
        trainer = tiny.trainer(tmp_path, eval_dataset=tiny.rows(4), loss="sft+hidden")
        assert trainer.evaluate(tiny.raw_rows(4))["eval_loss"] == pytest.approx(trainer.evaluate()["eval_loss"])


def test_mixed_rows_in_their_own_order(tmp_path):
    rows = tiny.mixed_rows(8)
    trainer = tiny.trainer(tmp_path, train_dataset=rows, loss="sft", train_sampling_strategy="sequential")
    order = [number for batch in trainer.get_train_dataloader() for number in batch["row_number"].tolist()]
    assert order == [0, 2, 4, 6, 1, 3, 5, 7]


class TestUnfitTeachers:
    def refusal(self, folder, **given):
        with pytest.raises(UserInputError) as caught:
            tiny.trainer(folder, **given)
        return str(caught.value)

    def test_a_name_or_the_student_itself(self, tmp_path):
        line = "the teacher must be a model of its own: load the unpruned one and give it as teacher."
        student = tiny.student()
        assert self.refusal(tmp_path, teacher="original") == line
        assert self.refusal(tmp_path, model=student, teacher=student) == line

    def test_one_of_fewer_layers(self, tmp_path):
        assert self.refusal(tmp_path, teacher=tiny.student(), loss="layers=1", plan=tiny.plan()) == (
            "the teacher has 6 layers and the plan tells of layer 7: give the model that the student was pruned from."
        )
