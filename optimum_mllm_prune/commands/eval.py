"""`optimum-cli mllm-eval`: its arguments. Only light imports here: every optimum-cli call reads this file.

For several processes: `accelerate launch -m optimum_mllm_prune.commands.eval`, with the same arguments.
"""

from __future__ import annotations

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo

from .exits import carry_out
from .flags import add_flag, add_loading_flags, prepare, run_as_module


DESCRIPTION = """\
Measure a vision-language model, pruned or not: how good its answers are, what it costs and how fast it is, and what
real benchmarks say; beside another model where one is named."""

EXAMPLES = """\
examples:
  how much of the original's quality is left, by category:
    optimum-cli mllm-eval --model pruned --baseline original --dataset my_rows --dataset-split test --by kind
  size, speed and memory, before and after, in one run:
    optimum-cli mllm-eval --model pruned --baseline original --efficiency
  yes or no questions as in POPE, documents as in DocVQA:
    optimum-cli mllm-eval --model pruned --dataset pope_rows --metrics yes_no_f1
    optimum-cli mllm-eval --model pruned --dataset documents --metrics anls exact_match
  real benchmarks, by lm-eval or lmms-eval:
    optimum-cli mllm-eval --model pruned --tasks mmmu_val
  and write what was found into the checkpoint's own card:
    optimum-cli mllm-eval --model pruned --baseline original --dataset my_rows --update-card
  several processes:
    accelerate launch -m optimum_mllm_prune.commands.eval --model pruned --dataset my_rows

exit codes: 0 done; 1 something failed; 2 the input is wrong (one line says what to do); 130 interrupted."""

LESS_MEMORY = (
    "lower --batch-size or --max-new-tokens, leave out --baseline and measure it apart, or use another --dtype or "
    "--device"
)


class MLLMEvalCommand(BaseOptimumCLICommand):
    """The command as optimum-cli knows it."""

    COMMAND = CommandInfo(name="mllm-eval", help="Measure the quality and efficiency of a vision-language model.")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Add the arguments to the parser that optimum-cli hands over."""
        parser.formatter_class = RawDescriptionHelpFormatter
        prepare(parser, DESCRIPTION, EXAMPLES)
        _add_main(parser)
        _add_quality(parser)
        _add_efficiency(parser)
        _add_tasks(parser)
        add_flag(add_loading_flags(parser), "--baseline-revision", help="branch, tag or commit of the baseline")

    def run(self) -> None:
        """Measure; ends the process with the command's exit code."""
        carry_out(self, "eval_run", LESS_MEMORY)


def _add_main(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("what to measure")
    group.add_argument("-m", "--model", required=True, help="the checkpoint: folder or Hub id")
    group.add_argument(
        "output", nargs="?", type=Path, help="folder for report and pictures (default: ./NAME-evaluation)"
    )
    group.add_argument("--baseline", help="the model to compare with, such as the unpruned one")
    add_flag(
        group, "--update-card", action="store_true", help="also write the result into the card of the --model folder"
    )
    group.add_argument(
        "--overwrite", action="store_true", help="replace the output folder when the new one is complete"
    )
    group.add_argument("--seed", type=int, default=42, help="of the draw of rows and of resampling (default 42)")
    add_flag(group, "--batch-size", type=int, default=16, help="rows run together (default 16)")


def _add_quality(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("quality")
    group.add_argument("--dataset", help="rows with right answers: folder, file, or Hub id")
    add_flag(group, "--dataset-split", help="split of the data set (default: train)")
    add_flag(group, "--num-samples", type=int, help="rows to draw (default: all)")
    group.add_argument(
        "--metrics", nargs="+", metavar="NAME",
        help="exact_match, vqa_accuracy, yes_no_f1, anls, relaxed_accuracy, answer_perplexity, token_agreement "
        "(default: exact_match, answer_perplexity, and beside a baseline token_agreement)",
    )  # fmt: skip
    group.add_argument("--by", metavar="COLUMN", help="score the values of this column apart as well")
    add_flag(group, "--max-new-tokens", type=int, default=48, help="longest answer in tokens (default 48)")


def _add_efficiency(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("efficiency")
    group.add_argument(
        "--efficiency", action="store_true", help="size, operations, time to first token, decoding speed, memory"
    )
    add_flag(
        group, "--efficiency-batch-sizes", type=int, nargs="+", metavar="N", help="rows at once (default 1 and 8)"
    )
    add_flag(group, "--efficiency-tokens", type=int, metavar="N", help="tokens to generate a row (default 32)")
    add_flag(group, "--efficiency-repeats", type=int, metavar="N", help="timed turns of each model (default 5)")


def _add_tasks(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("benchmarks")
    group.add_argument("--tasks", help="names of benchmarks, with commas between: mmmu_val,ai2d")
    group.add_argument(
        "--harness", default="lm-eval", choices=["lm-eval", "lmms-eval"], help="who runs them (default lm-eval)"
    )
    add_flag(
        group, "--harness-model", help="the harness's own name for its model class (default hf-multimodal, llava_hf)"
    )
    add_flag(group, "--tasks-folder", type=Path, help="folder with task files of your own")
    group.add_argument("--limit", type=int, help="rows of each benchmark (default: all)")


if __name__ == "__main__":
    run_as_module(MLLMEvalCommand)
