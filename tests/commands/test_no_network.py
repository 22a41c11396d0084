"""The real command where the Hub is asked and does not answer: one line, whatever the libraries try meanwhile."""

import os
import subprocess
import sys

import pytest
from commands.conftest import PROGRAM


# The Hub's client waits longer from try to try, half a minute in all: not here.
SCRIPT = (
    "import sys, time\n"
    "time.sleep = lambda seconds: None\n"
    "from optimum.commands.optimum_cli import main\n"
    "sys.argv = ['optimum-cli', 'mllm-prune', *sys.argv[1:]]\n"
    "main()\n"
)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--model", "no-such/model"),
         "no model 'no-such/model': it is neither a local folder nor reachable on the Hub ("),
        (("--model", None, "--dataset", "no-such/rows"),
         "Dataset 'no-such/rows' is no local path, and the Hub cannot be reached; check the network or give a "
         "folder."),
    ],
    ids=["model", "dataset"],
)  # fmt: skip
def test_one_line(llava, cwd, words, line):
    environment = {
        **os.environ,
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(cwd / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("HF_HUB_OFFLINE", None)
    words = [str(word or llava) for word in words]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *words], capture_output=True, text=True, cwd=cwd, env=environment
    )
    assert done.returncode == 2
    (said,) = done.stderr.splitlines()
    assert said.startswith(f"{PROGRAM}: error: {line}")
    assert done.stdout == ""
