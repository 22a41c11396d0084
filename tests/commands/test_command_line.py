"""What is written down of the command: all that matters, no token, no local path."""

import shlex
from argparse import ArgumentParser

import pytest

from optimum_mllm_prune.commands.command_line import command_line
from optimum_mllm_prune.commands.prune import MLLMPruneCommand
from optimum_mllm_prune.commands.prune_flags import DEFAULTS, PATHS, SOURCES


@pytest.fixture
def written():
    parser = ArgumentParser()
    MLLMPruneCommand.parse_args(parser)

    def write(*words):
        return command_line("mllm-prune", parser.parse_args(words), DEFAULTS, SOURCES, PATHS)

    write.parser = parser
    return write


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("-m me/large", "--model me/large"),
        ("--model=/home/me/key=1/large", "--model large"),
        ("-m/home/me/large", "--model large"),
        # The output need not exist.
        ("--model me/large secret_client/out", "--model me/large out"),
        ("--model me/large -- /a=b/out", "--model me/large out"),
        ("--model me/large --plan secret_client/plan.json", "--model me/large --plan plan.json"),
        ("--model me/large --scores=secret_client/dry", "--model me/large --scores dry"),
        ("--model me/large --cache_dir secret_client/cache", "--model me/large --cache-dir cache"),
        ("--model me/large --dataset me/rows --dataset-split=a=b",
         "--model me/large --dataset me/rows --dataset-split a=b"),
        ("--model me/large --dataset ./secret=client/rows.jsonl", "--model me/large --dataset rows.jsonl"),
        ("--model me/large --token hf_secret --debug", "--model me/large"),
        ("--model me/large --token=hf_secret", "--model me/large"),
        ("--model me/large --head-share 0 --seed 0", "--model me/large --seed 0 --head-share 0.0"),
        ("--model me/large --protect_layers 1 2 --no-twin", "--model me/large --protect-layers 1 2 --no-twin"),
    ],
)  # fmt: skip
def test_what_is_written(written, words, expected):
    assert written(*words.split()) == f"optimum-cli mllm-prune {expected}"


def test_it_gives_the_same_arguments_again(written):
    words = (
        "--model me/large out --method width --ratio 0.3 --importance wanda --dataset me/rows --num-samples 4 "
        "--head-unit query --head-share 0.5 --channel-multiple 32 --dtype bfloat16 --overwrite"
    )
    again = shlex.split(written(*words.split()))[2:]
    assert written.parser.parse_args(again) == written.parser.parse_args(words.split())
