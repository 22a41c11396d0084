"""The command line as it may be written down."""

import os
import shlex
from argparse import Namespace
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..loading import public_name


# `func` is how optimum-cli finds its command.
UNWRITTEN = ("token", "debug", "func")


def command_line(
    command: str, args: Namespace, defaults: Mapping[str, Any], sources: Collection[str], paths: Collection[str]
) -> str:
    """The command that gives these arguments: no token, of local paths only the last part.

    It is made from the arguments rather than from what was typed, where a path may hide in any spelling.

    Args:
        command: its name behind `optimum-cli`.
        args: the parsed arguments.
        defaults: what a flag is when it was not given; None where not named. Flags at their default are left out.
        sources: flags that name something local or on the Hub.
        paths: flags that name something local, whether or not it exists yet.
    """
    words = ["optimum-cli", command]
    for name, value in vars(args).items():
        # Not `in`: a number that is 0 equals False.
        if name in UNWRITTEN or value is None or value is False or value == defaults.get(name):
            continue
        words += [] if name == "output" else [spelt(name)]
        if value is not True:
            said = last_part if name in paths else public_name if name in sources else str
            words += [said(one) for one in (value if isinstance(value, list) else [value])]
    return shlex.join(words)


def hub_options(args: Namespace, *names: str) -> dict[str, Any]:
    """Those of the flags that say how to reach the Hub that were given."""
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def spelt(flag: str) -> str:
    """How an argument is called on the command line."""
    return "OUTPUT" if flag == "output" else f"--{flag.replace('_', '-')}"


def last_part(path: str | Path) -> str:
    """The last part of a path; of `.` it is that of the folder it stands for."""
    return Path(os.path.abspath(path)).name
