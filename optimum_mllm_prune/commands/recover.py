"""`optimum-cli mllm-recover`: its arguments. Only light imports here: every optimum-cli call reads this file.

For several processes: `accelerate launch -m optimum_mllm_prune.commands.recover`, with the same arguments.
"""

from __future__ import annotations

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo

from .exits import carry_out
from .flags import add_flag, add_hub_flags, add_loading_flags, prepare, run_as_module


DESCRIPTION = """\
Train a pruned vision-language model on a few rows, and on what the unpruned model says of them, so that it learns
back what it lost. The result is again a plain transformers checkpoint, verified in a fresh process."""

EXAMPLES = """\
examples:
  the paper's best recipe on 5 % of the rows; the teacher is the model that the pruned one was made from:
    optimum-cli mllm-recover --model llava-1.5-7b-hf-pruned recovered --dataset my_rows --fraction 0.05 --bf16
  the projector alone, by finetuning, without a teacher:
    optimum-cli mllm-recover --model pruned recovered --dataset my_rows --train projector --loss sft
  a teacher that does not fit beside the student: what it says is stored first
    optimum-cli mllm-recover --model pruned recovered --dataset my_rows --teacher-cache cache --top-k 64
  any argument of transformers' TrainingArguments:
    optimum-cli mllm-recover --model pruned recovered --dataset my_rows --set optim=adafactor max_grad_norm=0.5
  several processes:
    accelerate launch -m optimum_mllm_prune.commands.recover --model pruned recovered --dataset my_rows

A run that was broken off goes on where it was when the same command is given again.
exit codes: 0 done; 1 something failed; 2 the input is wrong (one line says what to do); 130 interrupted."""

LESS_MEMORY = (
    "lower --per-device-train-batch-size (and raise --gradient-accumulation-steps), add --activation-checkpointing "
    "or --bf16, choose --train lora or projector, store what the teacher says with --teacher-cache, or use another "
    "--device"
)


class MLLMRecoverCommand(BaseOptimumCLICommand):
    """The command as optimum-cli knows it."""

    COMMAND = CommandInfo(name="mllm-recover", help="Train a pruned vision-language model so that it recovers.")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Add the arguments to the parser that optimum-cli hands over."""
        parser.formatter_class = RawDescriptionHelpFormatter
        prepare(parser, DESCRIPTION, EXAMPLES)
        _add_main(parser)
        _add_losses(parser)
        _add_trained(parser)
        _add_training(parser)
        _add_loading(parser)
        add_hub_flags(parser)

    def run(self) -> None:
        """Recover; ends the process with the command's exit code."""
        carry_out(self, "recover_run", LESS_MEMORY)


def _add_main(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("what to recover")
    group.add_argument("-m", "--model", required=True, help="the pruned checkpoint: folder or Hub id")
    group.add_argument(
        "output", nargs="?", type=Path, help="folder for the result (default: ./NAME-recovered); must not exist"
    )
    group.add_argument("--teacher", help="the unpruned model (default: the base model that the pruning plan names)")
    group.add_argument("--dataset", required=True, help="rows to train on: folder, file, or Hub id")
    add_flag(group, "--dataset-split", help="split of the data set (default: train)")
    add_flag(group, "--eval-dataset", help="held-out rows on which the loss is evaluated as well")
    add_flag(group, "--eval-split", help="their split (default: train)")
    group.add_argument("--fraction", type=float, help="train on this share of the rows, such as 0.05")
    add_flag(group, "--max-samples", type=int, help="train on so many rows at most")
    add_flag(group, "--stratify-by", help="column whose values keep their shares in the drawn rows")
    group.add_argument("--seed", type=int, help="seed of the draw and of the training (default 42)")
    group.add_argument(
        "--overwrite", action="store_true", help="replace the output folder when the new one is complete"
    )


def _add_losses(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("losses")
    group.add_argument(
        "--loss",
        help="sft, kd, hidden, sft+kd, sft+hidden (default), sft+hidden+kd, or weights of sft, logits, hidden and "
        "layers: sft=0.5,hidden=0.4,layers=0.1",
    )
    group.add_argument("--divergence", help="of the logits: forward_kl (default), reverse_kl, jsd")
    group.add_argument("--temperature", type=float, help="tau at which logits are compared (default 2)")
    add_flag(group, "--jsd-beta", type=float, help="beta of the generalised Jensen-Shannon divergence (default 0.5)")
    add_flag(group, "--logits-tokens", help="where logits are compared: answer (default), text")
    add_flag(group, "--hidden-distance", help="of hidden states: mse (default), cosine")
    add_flag(group, "--hidden-tokens", help="where hidden states are compared: answer (default), text, all")
    add_flag(group, "--teacher-cache", help="folder: store what the teacher says first, then train without it")
    add_flag(group, "--top-k", type=int, help="logits a token to store in the cache (default 64)")


def _add_trained(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("what trains")
    group.add_argument(
        "--train", help="projector, lora (adapters in the backbone, projector in full; default), or full"
    )
    add_flag(group, "--train-vision", action="store_true", default=None, help="train the vision tower as well")
    add_flag(group, "--lora-r", type=int, help="rank of the adapters (default 16)")
    add_flag(group, "--lora-alpha", type=int, help="their scale, times 1 / rank (default 32)")
    add_flag(group, "--lora-dropout", type=float, help="dropout before them (default 0.05)")
    add_flag(group, "--keep-adapter", action="store_true", help="also keep the adapter, in OUTPUT/adapter")


def _add_training(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    add_flag(group, "--learning-rate", type=float, help="peak learning rate (default 4e-5)")
    add_flag(group, "--projector-learning-rate", type=float, help="of the projector, where it is another")
    add_flag(group, "--num-train-epochs", type=float, help="passes over the rows (default 1)")
    add_flag(group, "--max-steps", type=int, help="optimiser steps, instead of passes")
    add_flag(group, "--per-device-train-batch-size", type=int, help="rows a pass on each process (default 8)")
    add_flag(group, "--gradient-accumulation-steps", type=int, help="passes an optimiser step (default 1)")
    add_flag(group, "--activation-checkpointing", action="store_true", default=None, help="less memory, more time")
    group.add_argument("--bf16", action="store_true", default=None, help="mixed precision in bfloat16")
    add_flag(group, "--logging-steps", type=int, help="log the terms of the loss every so many steps (default 10)")
    add_flag(group, "--save-steps", type=int, help="checkpoint to resume from every so many steps (default 500)")
    group.add_argument("--config", help="YAML file with any key of RecoveryArguments, which has all of Trainer's")
    group.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="any such key by itself")


def _add_loading(parser: ArgumentParser) -> None:
    group = add_loading_flags(parser)
    add_flag(
        group, "--teacher-dtype", default="auto", help="the teacher's: auto (as saved), float32, bfloat16, float16"
    )
    add_flag(
        group,
        "--teacher-quantization",
        choices=["8bit", "4bit"],
        help="hold the teacher in so many bits; needs bitsandbytes",
    )
    add_flag(group, "--teacher-revision", help="branch, tag or commit of the teacher")


if __name__ == "__main__":
    run_as_module(MLLMRecoverCommand)
