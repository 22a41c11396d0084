"""`optimum-cli mllm-prune`: its arguments. Only light imports here: every optimum-cli call reads this file."""

from __future__ import annotations

from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo


DESCRIPTION = """\
Make a vision-language model smaller: remove whole layers, or attention heads and MLP channels, of its language
backbone. The result is a plain transformers checkpoint, verified in a fresh process before the command ends."""

EXAMPLES = """\
examples:
  15 %% of the backbone, by width, into ./llava-1.5-7b-hf-pruned:
    optimum-cli mllm-prune --model llava-hf/llava-1.5-7b-hf
  30 %%, calibrated on your own rows:
    optimum-cli mllm-prune --model llava-hf/llava-1.5-7b-hf out --ratio 0.3 --dataset my_rows
  five layers, sizes only, nothing loaded:
    optimum-cli mllm-prune --model llava-hf/llava-1.5-7b-hf --dry-run --num-layers 5
  another ratio from the same calibration:
    optimum-cli mllm-prune --model llava-hf/llava-1.5-7b-hf out40 --ratio 0.4 --scores out

exit codes: 0 done; 1 something failed; 2 the input is wrong (one line says what to do); 130 interrupted."""


class MLLMPruneCommand(BaseOptimumCLICommand):
    """The command as optimum-cli knows it."""

    COMMAND = CommandInfo(name="mllm-prune", help="Prune a vision-language model into a smaller, standard checkpoint.")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Add the arguments to the parser that optimum-cli hands over."""
        parser.formatter_class = RawDescriptionHelpFormatter
        parser.description, parser.epilog, parser.allow_abbrev = DESCRIPTION, EXAMPLES.replace("%%", "%"), False
        # A wrong flag is told in one line, like every other mistake.
        parser.error = lambda message: parser.exit(2, f"{parser.prog}: error: {message}\n")
        _add_main(parser)
        _add_importance(parser)
        _add_plan(parser)
        _add_loading(parser)
        _add_hub(parser)

    def run(self) -> None:
        """Prune; ends the process with the command's exit code."""
        from .exits import exit_codes

        with exit_codes(self.parser.prog, self.args.debug):
            # Imported inside: torch takes seconds, in which Ctrl-C must end the command as it does later.
            from .prune_run import run

            run(self.args)


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
        help="layer (whole layers), width (heads and MLP channels), auto (layer with --num-layers, else width)",
    )
    group.add_argument(
        "--ratio", type=float, help="share of the language backbone's parameters to remove (default 0.15)"
    )
    _flag(group, "--num-layers", type=int, help="number of decoder layers to remove")
    _flag(group, "--target-params", type=parameter_count, help="parameters of the whole model afterwards, such as 5B")
    group.add_argument(
        "--overwrite", action="store_true", help="replace the output folder when the new one is complete"
    )


def _add_importance(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("importance and calibration")
    group.add_argument(
        "--importance",
        help="width: taylor (default), taylor_group, activation, wanda, magnitude_l1, magnitude_l2, random; "
        "layer: block_influence (default), magnitude, random",
    )
    group.add_argument(
        "--dataset",
        help="calibration rows: folder (save_to_disk, imagefolder, json or parquet with images), file, or Hub id",
    )
    _flag(group, "--dataset-split", help="split of the data set (default: train)")
    _flag(group, "--num-samples", type=int, help="calibration rows (default: 10 for gradients, 50 for activations)")
    _flag(group, "--batch-size", type=int, help="rows a pass (default: all for taylor, else 8)")
    _flag(group, "--gradient-checkpointing", action="store_true", help="less memory, more time in gradient metrics")
    group.add_argument("--seed", type=int, default=42, help="seed of every random choice (default 42)")
    group.add_argument("--scores", help="scores of an earlier run (folder or file): no calibration is needed")


def _add_plan(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("plan")
    _flag(group, "--dry-run", action="store_true", help="plan and show sizes; write plan and scores but no model")
    group.add_argument("--plan", help="carry out a pruning_plan.json (file or folder) instead of making one")
    _flag(group, "--head-unit", default="auto", help="remove heads by group, query, or auto (default)")
    _flag(
        group,
        "--head-share",
        type=float,
        default=1.0,
        help="how fast heads go compared with MLP channels: 1 evenly, as in the paper (default), 0 not at all",
    )
    _flag(
        group,
        "--channel-multiple",
        type=int,
        help="MLP widths become a multiple of this (default: 64 or what divides)",
    )
    _flag(
        group,
        "--protect-layers",
        type=int,
        nargs="+",
        metavar="LAYER",
        help="layers that must stay (method layer)",
    )
    _flag(
        group,
        "--no-twin",
        action="store_true",
        help="keep the text model type even where its config rejects the best head count (Llama; its twin is Mistral)",
    )


def _add_loading(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("loading")
    group.add_argument("--dtype", default="auto", help="auto (as saved), float32, bfloat16 or float16")
    group.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: cuda if there is one)")
    _flag(group, "--device-map", help="spread the model over devices, as in from_pretrained (auto, balanced, ...)")
    group.add_argument("--revision", help="branch, tag or commit of the model")
    _flag(group, "--trust-remote-code", action="store_true", help="run code from the model's repository")
    group.add_argument("--token", help="Hub token (never written down)")
    _flag(group, "--cache-dir", help="folder of downloaded files")
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")


def _add_hub(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("hub")
    _flag(group, "--push-to-hub", action="store_true", help="upload the verified checkpoint in one commit")
    _flag(group, "--repo-id", help="repository to push to")
    group.add_argument("--private", action="store_true", help="make the repository private")


def _flag(group: ArgumentParser, name: str, **options: Any) -> None:
    """Add a flag in both spellings, of which --help shows one: optimum mixes - and _."""
    group.add_argument(name, **options)
    group.add_argument("--" + name[2:].replace("-", "_"), **{**options, "default": SUPPRESS, "help": SUPPRESS})
