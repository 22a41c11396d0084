"""A measurement in a process of its own, so that no other one has warmed it up or taken memory before."""

import json
import subprocess
import sys
from typing import Any


def measured_apart(*words: object) -> dict[str, Any]:
    """Run this script again, with its own arguments and these more; the JSON that it prints as its last line."""
    command = [sys.executable, sys.argv[0], *sys.argv[1:], *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])
