"""The tiny LLaVA of digit scenes as teacher, two of its layers less as student, rows, and a trainer of both."""

from __future__ import annotations

import copy
from functools import cache

from checkpoint import tiny_llava
from masking import plan_removing

from optimum_mllm_prune.backbone import Backbone
from optimum_mllm_prune.calibration.batches import make_batch
from optimum_mllm_prune.calibration.rows import open_rows
from optimum_mllm_prune.recovery.arguments import RecoveryArguments
from optimum_mllm_prune.recovery.trainer import RecoveryTrainer
from optimum_mllm_prune.surgery import pruned_model


REMOVED = [1, 4]
KEPT = [0, 2, 3, 5, 6, 7]

processor = tiny_llava.processor


@cache
def _teacher():
    return tiny_llava.moved(by=0.05)


def teacher():
    """Each call a new model; its weights are larger than fresh ones, so that every layer and token counts."""
    return copy.deepcopy(_teacher())


@cache
def plan():
    return plan_removing(Backbone.of(_teacher()), layers=REMOVED)


@cache
def _student():
    return pruned_model(teacher(), Backbone.of(_teacher()), plan())


def student():
    """Each call a new model of the same weights."""
    return copy.deepcopy(_student())


def raw_rows(number=12):
    """Answers of one to four times their length."""
    raw = [dict(tiny_llava.rows()[i]) for i in range(number)]
    for i, row in enumerate(raw):
        question, answer = row["messages"]
        text = " ".join([answer["content"][0]["text"]] * (1 + i % 4))
        row["messages"] = [question, {"role": "assistant", "content": [{"type": "text", "text": text}]}]
    return raw


def rows(number=12):
    return open_rows(raw_rows(number))


def mixed_rows(number=12):
    """Every other row without an image."""
    raw = raw_rows(number)
    for row in raw[1::2]:
        question = {"role": "user", "content": "How many digits are there?"}
        row |= {"images": [], "messages": [question, row["messages"][1]]}
    return open_rows(raw)


def batch(number=3):
    return make_batch(processor(), list(rows(number)))


def arguments(folder, **given):
    """Quick ones on the CPU; every step is logged, nothing is saved."""
    usual = {
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "train": "full",
    }
    return RecoveryArguments(output_dir=str(folder), **(usual | given))


def trainer(folder, **given):
    """A trainer; models, rows and plan may be given, the rest are arguments."""
    wanted = {"model", "teacher", "train_dataset", "eval_dataset", "plan", "callbacks"} & given.keys()
    own = {name: given.pop(name) for name in wanted}
    usual = {"teacher": None if given.get("loss") == "sft" else teacher(), "train_dataset": rows()}
    usual["model"] = own.pop("model", None) or student()
    return RecoveryTrainer(args=arguments(folder, **given), processing_class=processor(), **(usual | own))


def state(model):
    return copy.deepcopy(model.state_dict())


def logged(trainer, name="loss"):
    return [entry[name] for entry in trainer.state.log_history if name in entry]
