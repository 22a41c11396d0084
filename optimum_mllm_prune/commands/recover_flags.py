"""Which flags of `optimum-cli mllm-recover` go together: what contradicts or has no effect is told, not ignored."""

from argparse import Namespace
from pathlib import Path

from ..errors import UserInputError
from ..recovery.arguments import RecoveryArguments
from .command_line import spelt
from .shared_checks import refuse_bad_push, refuse_idle_revision, refuse_unknown_dtype


# Flags that are keys of RecoveryArguments.
TRAINING = (
    "activation_checkpointing",
    "bf16",
    "divergence",
    "fraction",
    "gradient_accumulation_steps",
    "hidden_distance",
    "hidden_tokens",
    "jsd_beta",
    "learning_rate",
    "logging_steps",
    "logits_tokens",
    "lora_alpha",
    "lora_dropout",
    "lora_r",
    "loss",
    "max_samples",
    "max_steps",
    "num_train_epochs",
    "per_device_train_batch_size",
    "projector_learning_rate",
    "save_steps",
    "seed",
    "stratify_by",
    "temperature",
    "train",
    "train_vision",
)
# What the run reads and must not replace.
SOURCES = ("model", "teacher", "dataset", "eval_dataset", "teacher_cache", "config", "cache_dir")
PATHS = ("output", "teacher_cache", "config", "cache_dir")
# What a flag is when it was not given; None where not named.
DEFAULTS = {"dtype": "auto", "teacher_dtype": "auto", "set": [], "keep_adapter": False}


def refuse_contradictions(args: Namespace) -> None:
    """Raise UserInputError where two flags exclude each other, or one would have no effect."""
    refuse_bad_push(args)
    refuse_unknown_dtype(args.dtype)
    refuse_unknown_dtype(args.teacher_dtype)
    refuse_idle_revision(args.model, args.revision, "--revision")
    refuse_idle_revision(args.teacher, args.teacher_revision, "--teacher-revision")
    if args.device not in (None, "cpu") and not str(args.device).startswith(("cuda", "mps", "xpu", "npu")):
        raise UserInputError(f"device '{args.device}' cannot be trained on: use cpu, or leave it out for the GPU.")
    if args.eval_split and not args.eval_dataset:
        raise UserInputError("--eval-split is only used with --eval-dataset: add it, or leave --eval-split out.")
    if args.top_k is not None and not args.teacher_cache:
        raise UserInputError("--top-k is only used with --teacher-cache: add it, or leave --top-k out.")
    if args.top_k is not None and args.top_k < 1:
        raise UserInputError(f"--top-k must be at least 1, got {args.top_k}.")
    same_split = (args.eval_split or "train") == (args.dataset_split or "train")
    if args.eval_dataset and Path(args.eval_dataset) == Path(args.dataset) and same_split:
        raise UserInputError("--eval-dataset is what is trained on: name other rows, or another --eval-split.")


def refuse_idle(args: Namespace, arguments: RecoveryArguments) -> None:
    """Raise UserInputError where a flag has no effect with the losses, or with what trains."""
    recipe = arguments.recipe()
    logits = bool(recipe.weight("logits"))
    hidden = bool(recipe.weight("hidden") or recipe.weight("layers"))
    lora, few = arguments.train == "lora", arguments.fraction is not None or arguments.max_samples is not None
    conditions = [
        (lora, "without --train lora", ("lora_r", "lora_alpha", "lora_dropout", "keep_adapter")),
        (
            logits,
            "without the loss term 'logits'",
            ("divergence", "temperature", "logits_tokens", "jsd_beta", "top_k"),
        ),
        (recipe.divergence == "jsd", "without --divergence jsd", ("jsd_beta",)),
        (hidden, "without the loss term 'hidden' or 'layers'", ("hidden_distance", "hidden_tokens")),
        (few, "without --fraction or --max-samples", ("stratify_by",)),
        (arguments.max_steps < 0, "beside --max-steps", ("num_train_epochs",)),
    ]
    for holds, why, flags in conditions:
        for flag in flags:
            value = getattr(args, flag)
            # Not `in`: a dropout of 0 equals False.
            if not holds and value is not None and value is not False:
                raise UserInputError(f"{spelt(flag)} has no effect {why}: leave it out.")
