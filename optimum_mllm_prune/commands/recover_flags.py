"""Which flags of `optimum-cli mllm-recover` go together: what contradicts or has no effect is told, not ignored."""

from argparse import Namespace
from pathlib import Path

from ..errors import UserInputError
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
    if args.keep_adapter and args.train not in (None, "lora"):
        raise UserInputError(f"--keep-adapter has no effect with --train {args.train}: leave it out.")
    if args.eval_dataset and Path(args.eval_dataset) == Path(args.dataset) and args.eval_split == args.dataset_split:
        raise UserInputError("--eval-dataset is what is trained on: name other rows, or another --eval-split.")
