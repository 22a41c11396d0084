"""What the command says of itself, and that it costs other commands nothing."""

import re
import subprocess
import sys
import sysconfig
from argparse import ArgumentParser
from pathlib import Path

import pytest

from optimum_mllm_prune.commands.prune import EXAMPLES, MLLMPruneCommand, parameter_count
from optimum_mllm_prune.importance.registry import METRICS, default_metric, metrics_for


@pytest.fixture
def parser():
    made = ArgumentParser("optimum-cli mllm-prune")
    MLLMPruneCommand.parse_args(made)
    return made


def run(*words):
    return subprocess.run(words, capture_output=True, text=True)


def optimum_cli(*words):
    return run(Path(sysconfig.get_path("scripts")) / "optimum-cli", *words)


def test_optimum_cli_lists_it():
    done = optimum_cli("--help")
    assert done.returncode == 0
    assert "mllm-prune" in done.stdout


def test_help_of_the_script():
    done = optimum_cli("mllm-prune", "--help")
    assert done.returncode == 0
    for heading in (
        "what to prune and by how much:",
        "importance and calibration:",
        "plan:",
        "loading:",
        "hub:",
        "examples:",
        "exit codes:",
    ):
        assert f"\n{heading}" in done.stdout
    assert "15 % of the backbone" in done.stdout


def test_registering_imports_nothing_heavy():
    script = (
        "import sys\n"
        "import optimum.commands.register.register_mllm_prune\n"
        "heavy = ('torch', 'transformers', 'datasets', 'accelerate', 'safetensors', 'numpy', 'PIL')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    assert run(sys.executable, "-c", script).stdout == "[]\n"


def test_the_metrics_of_the_help_are_those_of_the_registry(parser):
    text = " ".join(next(action.help for action in parser._actions if "--importance" in action.option_strings).split())
    named = {}
    for part in text.split("; "):
        method, _, names = part.partition(": ")
        named[method] = names.split(", ")
    assert named.keys() == {"width", "layer", "hidden"}
    for method, names in named.items():
        assert f"{default_metric(method)} (default)" in names
        assert [name.removesuffix(" (default)") for name in names] == metrics_for(method)
    assert {name.removesuffix(" (default)") for names in named.values() for name in names} == METRICS.keys()


def test_every_flag_has_both_spellings(parser):
    flags = {flag: action for action in parser._actions for flag in action.option_strings}
    hyphened = [flag for flag in flags if "-" in flag[2:]]
    assert "--num-layers" in hyphened
    for flag in hyphened:
        other = flags[flag[:2] + flag[2:].replace("-", "_")]
        assert (other.dest, other.nargs, other.type) == (flags[flag].dest, flags[flag].nargs, flags[flag].type)


def test_both_spellings_say_the_same(parser):
    hyphens = ["--num-layers", "2", "--dry-run", "--no-twin", "--protect-layers", "1", "3", "--trust-remote-code"]
    underscores = [word.replace("-", "_").replace("__", "--", 1) for word in hyphens]
    assert underscores != hyphens
    first, second = (parser.parse_args(["--model", "m", *words]) for words in (hyphens, underscores))
    assert first == second
    assert first.num_layers == 2
    assert first.protect_layers == [1, 3]


def test_the_examples_are_understood(parser):
    lines = re.findall(r"^    optimum-cli mllm-prune (.+)$", EXAMPLES.replace("\\\n", ""), re.MULTILINE)
    assert len(lines) == 12
    for line in lines:
        assert parser.parse_args(line.split()).model == "llava-hf/llava-1.5-7b-hf"


def test_every_flag_explains_itself(parser):
    for action in parser._actions:
        assert action.help, action.option_strings


@pytest.mark.parametrize(
    ("text", "number"),
    [("5B", 5 * 10**9), ("1.5b", 1_500_000_000), ("500M", 5 * 10**8), ("3k", 3000), ("5_000", 5000), ("7", 7)],
)
def test_numbers_of_parameters(text, number):
    assert parameter_count(text) == number


@pytest.mark.parametrize("text", ["", "B", "-5B", "0", "5 T", "few", "1.5", "nanB", "infB"])
def test_no_numbers_of_parameters(text, parser, capsys):
    with pytest.raises(SystemExit) as end:
        parser.parse_args(["--model", "m", f"--target-params={text}"])
    assert end.value.code == 2
    line = capsys.readouterr().err
    assert line.endswith(f": '{text}' is not a number of parameters: write 5B, 500M or 5000000000\n")
