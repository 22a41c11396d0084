"""RecoveryArguments: defaults, and every refusal."""

from dataclasses import fields

import pytest
from transformers import HfArgumentParser, TrainingArguments

from optimum_mllm_prune.errors import UserInputError
from optimum_mllm_prune.recovery.arguments import RecoveryArguments
from optimum_mllm_prune.recovery.recipe import Recipe


def arguments(**given):
    return RecoveryArguments(output_dir="unused", use_cpu=True, report_to="none", **given)


def test_the_published_settings_are_the_defaults():
    args = arguments()
    assert (args.learning_rate, args.lr_scheduler_type, args.warmup_steps) == (4e-5, "cosine", 0.03)
    assert (args.weight_decay, args.num_train_epochs, args.seed) == (0.05, 1.0, 42)
    assert args.recipe() == Recipe({"sft": 0.5, "hidden": 0.5}, temperature=2.0)
    assert args.train == "lora" and not args.train_vision


def test_a_short_warm_up_is_a_share_of_the_steps():
    assert arguments().get_warmup_steps(1000) == 30


def test_the_recipe_is_made_of_the_arguments():
    args = arguments(
        loss="logits=1,layers=2",
        divergence="jsd",
        temperature=3.0,
        jsd_beta=0.1,
        logits_tokens="text",
        hidden_distance="cosine",
        hidden_tokens="all",
    )
    assert args.recipe() == Recipe({"logits": 1.0, "layers": 2.0}, "jsd", 3.0, 0.1, "text", "cosine", "all")


def test_every_added_argument_says_what_it_is():
    old = {field.name for field in fields(TrainingArguments)}
    added = [field for field in fields(RecoveryArguments) if field.name not in old]
    assert len(added) >= 15
    assert all(field.metadata["help"] for field in added)


def test_they_can_be_parsed():
    (args,) = HfArgumentParser(RecoveryArguments).parse_args_into_dataclasses(
        ["--output_dir", "unused", "--use_cpu", "True", "--loss", "sft+kd", "--projector_learning_rate", "1e-3"]
    )
    assert (args.loss, args.projector_learning_rate, args.fraction) == ("sft+kd", 1e-3, None)


WRONG = [
    ({"train": "head"}, "unknown train 'head': use one of projector, lora, full"),
    ({"remove_unused_columns": True}, "remove_unused_columns must stay off and prediction_loss_only on"),
    ({"prediction_loss_only": False}, "remove_unused_columns must stay off and prediction_loss_only on"),
    ({"label_smoothing_factor": 0.1}, "label_smoothing_factor does not go with these losses: leave it out."),
    ({"torch_compile": True}, "torch_compile does not go with these losses: leave it out."),
    ({"use_liger_kernel": True}, "use_liger_kernel does not go with these losses: leave it out."),
    ({"train_sampling_strategy": "group_by_length"},
     "train_sampling_strategy must be random or sequential, as rows have no length: set one."),
    ({"fp16": True}, "fp16 needs a GPU: use bf16, or leave it out."),
    ({"learning_rate": -1.0}, "learning_rate must be a number of at least 0, got -1.0."),
    ({"learning_rate": float("nan")}, "learning_rate must be a number of at least 0, got nan."),
    ({"learning_rate": float("inf")}, "learning_rate must be a number of at most 1.797693135e+308, got inf."),
    ({"projector_learning_rate": -1.0}, "projector_learning_rate must be a number of at least 0, got -1.0."),
    ({"num_train_epochs": 0.0}, "num_train_epochs must be a number above 0, got 0.0."),
    ({"max_steps": 0}, "max_steps must be at least 1, got 0."),
    ({"max_steps": -5}, "max_steps must be at least 1, got -5."),
    ({"per_device_train_batch_size": 0}, "per_device_train_batch_size must be a number of at least 1, got 0."),
    ({"gradient_accumulation_steps": -1}, "gradient_accumulation_steps must be a number of at least 1, got -1."),
    ({"dataloader_num_workers": -1}, "dataloader_num_workers must be a number of at least 0, got -1."),
    ({"logging_steps": -1}, "logging_steps must be a number above 0, got -1."),
    ({"save_steps": 0}, "save_steps must be a number above 0, got 0."),
    ({"seed": -1}, "seed must be a number of at least 0, got -1."),
    ({"data_seed": -1}, "data_seed must be a number of at least 0, got -1."),
    ({"seed": 2**32}, "seed must be a number of at most 4294967295, got 4294967296."),
    ({"fraction": 2.0}, "fraction must lie in (0, 1] (0.05 takes 5 % of the rows), got 2.0."),
    ({"max_samples": 0}, "max_samples must be at least 1, got 0."),
    ({"lora_r": 0}, "lora_r and lora_alpha must be at least 1 and lora_dropout in [0, 1)"),
    ({"lora_alpha": 0}, "lora_r and lora_alpha must be at least 1 and lora_dropout in [0, 1)"),
    ({"lora_dropout": 1.0}, "lora_r and lora_alpha must be at least 1 and lora_dropout in [0, 1)"),
    ({"lora_dropout": -0.1}, "lora_r and lora_alpha must be at least 1 and lora_dropout in [0, 1)"),
    ({"loss": "all"}, "unknown loss 'all'"),
    ({"divergence": "kl"}, "unknown divergence 'kl'"),
    ({"temperature": -1.0}, "temperature must be a number above 0, got -1.0"),
    ({"jsd_beta": 1.0}, "jsd_beta must lie between 0 and 1, got 1.0"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "text"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_value(given, text):
    with pytest.raises(UserInputError) as caught:
        arguments(**given)
    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)


def test_a_head_in_pieces_is_refused(monkeypatch):
    monkeypatch.setattr("optimum_mllm_prune.recovery.arguments.is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(UserInputError) as caught:
        arguments()
    assert str(caught.value) == (
        "stage 3 of DeepSpeed's ZeRO holds pieces of the head's weights, of which no logits can be made chunk by "
        "chunk: use stage 1 or 2, or FSDP."
    )
