"""The fresh process that loads a saved checkpoint. It starts, and imports what it needs, while the checkpoint is still
being written."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import VerificationError, is_out_of_memory
from ..memory import OWN_PIECE, OWN_PIECE_VARIABLE
from . import reload


@dataclass(frozen=True)
class FreshProcess:
    """A process without this package that waits for its job.

    Attributes:
        scratch: folder for what it is handed over; it goes with the process.
        process: the process itself.
    """

    scratch: Path
    process: subprocess.Popen

    def findings(self, job: dict[str, Any]) -> dict[str, Any]:
        """What it finds; it does one job.

        Raises:
            VerificationError: it ended with an error.
            MemoryError: it ran out of memory.
        """
        file, found = self.scratch / "job.json", self.scratch / "findings.json"
        file.write_text(json.dumps(job | {"findings": str(found)}), encoding="utf-8")
        _, said = self.process.communicate(f"{file}\n")
        if self.process.returncode:
            reason = (said.strip().splitlines() or [f"the process ended with {self.process.returncode}"])[-1]
            # Linux kills the process that asks for too much, which leaves it no last word.
            if self.process.returncode == -signal.SIGKILL or is_out_of_memory(reason):
                raise MemoryError("the fresh process that loads the checkpoint ran out of memory")
            raise VerificationError(f"the saved checkpoint does not load in a fresh process: {reason}")
        return json.loads(found.read_text(encoding="utf-8"))


@contextmanager
def fresh_process(layers_on_disk: bool) -> Iterator[FreshProcess]:
    """Start the process; it is gone when the block ends.

    Args:
        layers_on_disk: whether the model's layers wait on disk, so that what one of them has used must be given back
            before the next is there.
    """
    # The program is handed over as text, and the folder of this package is not on the path of the process.
    program = [sys.executable, "-c", Path(reload.__file__).read_text(encoding="utf-8")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    if layers_on_disk:
        environment[OWN_PIECE_VARIABLE] = str(OWN_PIECE)
    pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
    with (
        tempfile.TemporaryDirectory(prefix="mllm-prune-") as scratch,
        subprocess.Popen(
            program, cwd=scratch, env=environment, stdin=pipe, stdout=nothing, stderr=pipe, text=True
        ) as process,
    ):
        try:
            yield FreshProcess(Path(scratch), process)
        finally:
            process.kill()
