"""The harnesses that run benchmarks, and how each wants to be called.

Checked with lm-eval 0.4.13, which this package's tests run, and with the sources of lmms-eval 0.7.3, which they do not
run: it needs torchvision.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from io import TextIOWrapper
from pathlib import Path

from ..errors import UserInputError


# Where `accelerate launch` or `torchrun` say which process of many one is; a harness is a process of its own.
_LAUNCH = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
_BAR = "%|"
_LIST_TASKS = (
    "import importlib, sys\n"
    "manager = importlib.import_module(sys.argv[1] + '.tasks').TaskManager(include_path=sys.argv[2] or None)\n"
    "print(*manager.all_tasks)\n"
)


@dataclass(frozen=True)
class Harness:
    """A package that runs benchmarks.

    Attributes:
        name: of the package.
        module: what Python runs.
        extra: of this package that installs it.
        model: which of its classes runs a checkpoint unless told otherwise.
        options: that are always given.
        model_args: writes the arguments of that class as the harness reads them.
    """

    name: str
    module: str
    extra: str
    model: str
    options: tuple[str, ...]
    model_args: Callable[[Mapping[str, str]], str]

    def command(
        self, model: str | None, model_args: Mapping[str, str], options: Mapping[str, object | None]
    ) -> list[str]:
        """The command line.

        Args:
            model: class of the harness; None for the usual one.
            model_args: of that class.
            options: name to value; those without a value are left out.

        Raises:
            UserInputError: the harness is not installed, or cannot be told such an argument.
        """
        self.require()
        given = [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
        chosen = ["--model", model or self.model, "--model_args", self.model_args(model_args)]
        return [sys.executable, "-m", self.module, *self.options, *chosen, *given]

    def require(self) -> None:
        """Raise UserInputError where the harness is not installed."""
        if getattr(find_spec(self.module), "origin", None) is None:
            raise UserInputError(f"{self.name} is not installed: pip install 'optimum-mllm-prune[{self.extra}]'.")


def _pairs(arguments: Mapping[str, str]) -> str:
    """`name=value`, split at commas by who reads it."""
    for value in arguments.values():
        if "," in value:
            raise UserInputError(f"lmms-eval cannot be told of '{value}': give a name without a comma.")
    return ",".join(f"{name}={value}" for name, value in arguments.items())


# lmms-eval's class for any checkpoint, `huggingface`, loads none that can generate: it compares names with a list of
# config classes and falls back to AutoModel. Its chat classes apply the chat template by themselves.
HARNESSES = {
    harness.name: harness
    for harness in (
        Harness("lm-eval", "lm_eval", "eval", "hf-multimodal", ("run", "--apply_chat_template"), json.dumps),
        Harness("lmms-eval", "lmms_eval", "lmms", "llava_hf", (), _pairs),
    )
}


def run(command: Sequence[str]) -> tuple[int, list[str]]:
    """Run a command line and show its progress bars; its exit code, and what else it said on stderr."""
    environment = {name: value for name, value in os.environ.items() if name not in _LAUNCH}
    environment["PYTHONIOENCODING"] = "utf-8"
    lines, shown = [], "\n"
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            # A bar is written over itself after each "\r", which must reach the terminal as it is.
            for line in TextIOWrapper(process.stderr, encoding="utf-8", errors="replace", newline=""):
                if _BAR in line:
                    sys.stderr.write(shown := line)
                    sys.stderr.flush()
                elif line.strip():
                    lines.append(line.rstrip())
        except BaseException:
            process.kill()
            raise
    if not shown.endswith("\n"):
        print(file=sys.stderr)
    return process.returncode, lines


def task_names(harness: Harness, include_path: Path | None) -> list[str]:
    """All benchmarks that a harness knows, those of a folder included; none where it does not tell."""
    command = [sys.executable, "-c", _LIST_TASKS, harness.module, str(include_path or "")]
    return subprocess.run(command, capture_output=True, encoding="utf-8").stdout.split()
