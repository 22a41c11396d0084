"""Flags that several commands share. Only light imports here."""

from __future__ import annotations

from argparse import SUPPRESS, ArgumentParser
from typing import Any

from optimum.commands.base import BaseOptimumCLICommand


def prepare(parser: ArgumentParser, description: str, examples: str) -> None:
    """Make a parser say what the command does, and tell a wrong flag in one line like every other mistake."""
    parser.description, parser.epilog, parser.allow_abbrev = description, examples.replace("%%", "%"), False
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: error: {message}\n")


def run_as_module(command: type[BaseOptimumCLICommand]) -> None:
    """What `python -m` does with a command's module, for launchers of several processes."""
    parser = ArgumentParser(command.COMMAND.name)
    command.parse_args(parser)
    command(None, args=parser.parse_args(), from_defaults_factory=True, parser=parser).run()


def add_flag(group: ArgumentParser, name: str, **options: Any) -> None:
    """Add a flag in both spellings, of which --help shows one: optimum mixes - and _."""
    group.add_argument(name, **options)
    group.add_argument("--" + name[2:].replace("-", "_"), **{**options, "default": SUPPRESS, "help": SUPPRESS})


def add_loading_flags(parser: ArgumentParser) -> ArgumentParser:
    """How the model is loaded; gives the group, for more of the kind."""
    group = parser.add_argument_group("loading")
    group.add_argument("--dtype", default="auto", help="auto (as saved), float32, bfloat16 or float16")
    group.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: cuda if there is one)")
    add_flag(group, "--device-map", help="spread the model over devices, as in from_pretrained (auto, balanced, ...)")
    group.add_argument("--revision", help="branch, tag or commit of the model")
    group.add_argument("--token", help="Hub token (never written down)")
    add_flag(group, "--cache-dir", help="folder of downloaded files")
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return group


def add_hub_flags(parser: ArgumentParser) -> None:
    """Whether and where to push the result."""
    group = parser.add_argument_group("hub")
    add_flag(group, "--push-to-hub", action="store_true", help="upload the verified checkpoint in one commit")
    add_flag(group, "--repo-id", help="repository to push to")
    add_flag(group, "--push-revision", help="branch to push to, made if it does not exist (default: the main one)")
    group.add_argument("--private", action="store_true", help="make the repository private")
