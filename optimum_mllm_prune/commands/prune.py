"""`optimum-cli mllm-prune`: its arguments. Only light imports here: every optimum-cli call reads this file.

For several processes: `accelerate launch -m optimum_mllm_prune.commands.prune`, with the same arguments.
"""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from pathlib import Path

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo

from .exits import carry_out
from .flags import add_flag, add_hub_flags, add_loading_flags, prepare, run_as_module


DESCRIPTION = """\
Make a vision-language model smaller: remove whole layers, attention heads and MLP channels, or dimensions of the
residual stream, of its language backbone. The result is a plain transformers checkpoint, verified in a fresh process
before the command ends."""

EXAMPLES = """\
examples:
  15 %% of the backbone, by width, into ./llava-1.5-7b-hf-pruned:
    optimum-cli mllm-prune --model llava-hf/llava-1.5-7b-hf
  30 %%, calibrated on your own rows:
    optimum-cli mllm-prune --model llava-hf/llava-1.5-7b-hf out --ratio 0.3 --dataset my_rows
  five layers, sizes only, nothing loaded:
    optimum-cli mllm-prune --model llava-hf/llava-1.5-7b-hf --dry-run --num-layers 5
  15 %%, then train adapters on 5 %% of the rows, in one go:
    optimum-cli mllm-prune --model llava-hf/llava-1.5-7b-hf --dataset rows --recover lora --recover-set fraction=0.05
  so that it runs on a card of 8 GB with four rows of 4096 positions:
    optimum-cli mllm-prune --model llava-hf/llava-1.5-7b-hf --fits 8GB --batch 4 --context 4096 --dataset rows
  the best of several plans, by their answers on held-out rows:
    optimum-cli mllm-prune --model llava-hf/llava-1.5-7b-hf --ratio 0.3 --dataset rows --search
  60 %% in three steps, with a short training after each and a longer one at the end:
    optimum-cli mllm-prune --model llava-hf/llava-1.5-7b-hf --ratio 0.6 --steps 3 --dataset rows --recover lora \\
        --recover-between 50
  all the way: prune, recover, measure, publish; the same command goes on where it was broken off:
    optimum-cli mllm-prune --model llava-hf/llava-1.5-7b-hf out --target-params 5B --dataset rows --recover lora \\
        --eval-dataset test_rows --push-to-hub --repo-id me/llava-5b
  a model that is larger than memory, its layers read one after the other:
    optimum-cli mllm-prune --model llava-hf/llava-1.5-7b-hf --max-memory 6GB --method layer --dataset rows
  scored in 4 bits, for want of memory; then the plan is carried out on the whole model:
    optimum-cli mllm-prune --model llava-hf/llava-1.5-7b-hf plan --importance taylor_group --dataset rows --dry-run \\
        --quantization 4bit
  another ratio from the same calibration:
    optimum-cli mllm-prune --model llava-hf/llava-1.5-7b-hf out40 --ratio 0.4 --scores out
  a calibration shared by the GPUs of this machine:
    accelerate launch -m optimum_mllm_prune.commands.prune --model llava-hf/llava-1.5-7b-hf out --dataset my_rows
  scores in which answer tokens count four times and image tokens half:
    optimum-cli mllm-prune --model llava-hf/llava-1.5-7b-hf --importance wanda --modality-weights image=0.5,answer=4

exit codes: 0 done; 1 something failed; 2 the input is wrong (one line says what to do); 130 interrupted."""

LESS_MEMORY = (
    "lower --batch-size or --num-samples, add --gradient-checkpointing, choose an importance without gradients "
    "(activation, magnitude_l2), add --repair none, name a --max-memory, or use another --device; in a recovery, "
    "--recover-set per_device_train_batch_size=1"
)


class MLLMPruneCommand(BaseOptimumCLICommand):
    """The command as optimum-cli knows it."""

    COMMAND = CommandInfo(name="mllm-prune", help="Prune a vision-language model into a smaller, standard checkpoint.")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Add the arguments to the parser that optimum-cli hands over."""
        parser.formatter_class = RawDescriptionHelpFormatter
        prepare(parser, DESCRIPTION, EXAMPLES)
        _add_main(parser)
        _add_importance(parser)
        _add_plan(parser)
        _add_recovery(parser)
        _add_evaluation(parser)
        _add_loading(parser)
        add_hub_flags(parser)

    def run(self) -> None:
        """Prune; ends the process with the command's exit code."""
        carry_out(self, "prune_run", LESS_MEMORY)


def head_share(text: str) -> float | str:
    """A number, or "auto". Raises ArgumentTypeError."""
    try:
        return text if text == "auto" else float(text)
    except ValueError:
        raise ArgumentTypeError(f"'{text}' is neither auto nor a number from 0 to 1") from None


def parameter_count(text: str) -> int:
    """A number of parameters: 5000000000, 5_000_000_000, 5B, 500M or 1.5b."""
    unit = {"k": 10**3, "m": 10**6, "b": 10**9}.get(text[-1:].lower())
    try:
        count = round(float(text[:-1]) * unit) if unit else int(text)
    except (ValueError, OverflowError):
        count = 0
    if count < 1:
        raise ArgumentTypeError(f"'{text}' is not a number of parameters: write 5B, 500M or 5000000000")
    return count


def _add_main(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("what to prune and by how much")
    group.add_argument("-m", "--model", required=True, help="Hub id or local folder of a vision-language model")
    group.add_argument(
        "output", nargs="?", type=Path, help="folder for the result (default: ./NAME-pruned); must not exist"
    )
    group.add_argument(
        "--method",
        default="auto",
        help="layer (whole layers), width (heads and MLP channels), hidden (dimensions of the residual stream, in "
        "all layers), mixed (several of them in one plan), auto (the paper's guide; default)",
    )
    group.add_argument(
        "--ratio", type=float, help="share of the language backbone's parameters to remove (default 0.15)"
    )
    add_flag(group, "--num-layers", type=int, help="number of decoder layers to remove")
    add_flag(
        group, "--target-params", type=parameter_count, help="parameters of the whole model afterwards, such as 5B"
    )
    add_flag(group, "--target-size", help="size of the whole model's weights afterwards, such as 6GB")
    group.add_argument("--fits", help="memory that weights, cache and activations must fit into, such as 8GB")
    group.add_argument("--batch", type=int, help="rows at once that --fits is about (default 1)")
    group.add_argument("--context", type=int, help="positions of each that --fits is about (default 2048)")
    group.add_argument("--images", type=int, help="images of each that --fits is about (default 1)")
    group.add_argument(
        "--search",
        action="store_true",
        help="instead of the guide's rule: try plans of layers, width and mixtures on held-out rows, take the best",
    )
    add_flag(group, "--search-rows", type=int, help="held-out rows of --search (default 64)")
    group.add_argument(
        "--overwrite", action="store_true", help="replace the output folder when the new one is complete"
    )


def _add_importance(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("importance and calibration")
    group.add_argument(
        "--importance",
        help="width: taylor, taylor_second, taylor_mixed, taylor_group, activation, wanda, fluctuation, "
        "reconstruction (default), magnitude_l1, magnitude_l2, random; layer: block_influence (default), angular, "
        "loss, merge, magnitude, random; hidden: activation (default), magnitude_l2, random",
    )
    add_flag(
        group,
        "--modality-weights",
        metavar="image=0.5,prompt=1,answer=2",
        help="how much tokens count in the scores (default: all alike; 1 where not named), of taylor_group, "
        "activation, wanda, fluctuation and block_influence; also with --scores, which need no new calibration",
    )
    group.add_argument(
        "--dataset",
        help="calibration rows: folder (save_to_disk, imagefolder, json or parquet with images), file, or Hub id",
    )
    add_flag(group, "--dataset-split", help="split of the data set (default: train)")
    add_flag(
        group,
        "--num-samples",
        type=int,
        help="calibration rows (default: 10 for gradients, loss and merge, 50 for activations)",
    )
    add_flag(
        group,
        "--batch-size",
        type=int,
        help="rows a pass (default: all for taylor, one for taylor_second and taylor_mixed, else 8)",
    )
    add_flag(group, "--gradient-checkpointing", action="store_true", help="less memory, more time in gradient metrics")
    group.add_argument("--seed", type=int, default=42, help="seed of every random choice (default 42)")
    group.add_argument("--scores", help="scores of an earlier run (folder or file): no calibration is needed")


def _add_plan(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("plan")
    add_flag(group, "--dry-run", action="store_true", help="plan and show sizes; write plan and scores but no model")
    group.add_argument("--plan", help="carry out a pruning_plan.json (file or folder) instead of making one")
    add_flag(group, "--head-unit", default="auto", help="remove heads by group, query, or auto (default)")
    add_flag(
        group,
        "--head-share",
        type=head_share,
        help="how fast heads go compared with MLP channels: 1 evenly, as in the paper, 0 not at all; auto: the split "
        "that leaves the least error (default with importance reconstruction, else 1)",
    )
    add_flag(
        group,
        "--layer-share",
        type=float,
        help="how much of what goes is whole layers (method mixed; default 0.5, or 0 beside --hidden-share)",
    )
    add_flag(
        group,
        "--hidden-share",
        type=float,
        default=0.0,
        help="how much of what goes is dimensions of the residual stream (method mixed; default 0)",
    )
    add_flag(
        group,
        "--channel-multiple",
        type=int,
        help="MLP widths become a multiple of this (default: 64 or what divides)",
    )
    group.add_argument(
        "--repair",
        default="auto",
        help="mend what is left: least-squares (refit in closed form to what the original gives), linear-map (only "
        "the output of the MLP before removed layers), merge (layers that go into those before them), none, auto "
        "(merge with importance merge, else least-squares where rows are there; default)",
    )
    add_flag(group, "--repair-samples", type=int, default=128, help="rows to refit on (default 128)")
    group.add_argument(
        "--steps",
        type=int,
        default=1,
        help="make the plan in so many steps, each scored on what the last one left, repaired (default 1)",
    )
    add_flag(
        group,
        "--protect-layers",
        type=int,
        nargs="+",
        metavar="LAYER",
        help="layers that must stay (methods layer and mixed)",
    )
    add_flag(
        group,
        "--no-twin",
        action="store_true",
        help="keep the text model type even where its config rejects the best head count (Llama; its twin is Mistral)",
    )


def _add_recovery(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("recovery, as by mllm-recover, with the unpruned model as the teacher")
    group.add_argument(
        "--recover",
        choices=("none", "projector", "lora", "full"),
        default="none",
        help="train after pruning, so that the output is the recovered checkpoint: what trains, or none (default)",
    )
    add_flag(
        group,
        "--recover-between",
        type=int,
        metavar="STEPS",
        help="with --steps: train for so many optimiser steps after each of them but the last, and prune what came of "
        "it (default: only the last is trained)",
    )
    add_flag(group, "--recover-dataset", help="rows to train on (default: those of --dataset)")
    add_flag(group, "--recover-config", help="YAML file with any key of RecoveryArguments: loss, fraction, ...")
    add_flag(group, "--recover-set", nargs="+", default=[], metavar="KEY=VALUE", help="any such key by itself")


def _add_evaluation(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("evaluation, as by mllm-eval, with the unpruned model as the baseline")
    add_flag(group, "--eval-dataset", help="rows with right answers: measure the output on them, and write its card")
    add_flag(group, "--eval-split", help="their split (default: train)")
    add_flag(group, "--eval-by", metavar="COLUMN", help="score the values of this column apart as well")
    add_flag(group, "--eval-efficiency", action="store_true", help="measure size, speed and memory as well")


def _add_loading(parser: ArgumentParser) -> None:
    group = add_loading_flags(parser)
    add_flag(
        group,
        "--max-memory",
        help="such as 6GB (default: what is free): of a model that does not fit, decoder layers stay on disk until "
        "they run, are scored one after the other, and pruned on the way from file to file",
    )
    group.add_argument(
        "--quantization",
        choices=["8bit", "4bit"],
        help="hold the model in so many bits to score it, with --dry-run; the plan is then carried out on the whole "
        "model (--plan); for taylor_group, activation, block_influence, angular, loss; needs bitsandbytes",
    )
    add_flag(
        group,
        "--trust-remote-code",
        action="store_true",
        help="changes nothing: code from the model's repository is never run, since the result must load without it",
    )


if __name__ == "__main__":
    run_as_module(MLLMPruneCommand)
