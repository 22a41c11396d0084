"""How a command ends: exit codes, and one line on stderr.

Only light imports here: Ctrl-C while torch is being imported ends like any other.
"""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import UserInputError


INTERRUPTED = 130
OUT_OF_MEMORY = (
    "out of memory: lower --batch-size or --num-samples, add --gradient-checkpointing, choose an importance without "
    "gradients (activation, magnitude_l2), or another --device"
)


@contextmanager
def exit_codes(program: str, debug: bool) -> Iterator[None]:
    """Turn exceptions into one line and an exit code: 2 what the user can mend, 1 anything else, 130 Ctrl-C.

    Args:
        program: named at the start of the line.
        debug: let exceptions through, with their traceback.
    """
    try:
        yield
    except KeyboardInterrupt:
        _end(program, "interrupted; nothing was kept", INTERRUPTED)
    except Exception as error:
        if debug:
            raise
        _end(program, *_told(error))


def _told(error: Exception) -> tuple[str, int]:
    from ..checkpoint import VerificationError

    if isinstance(error, UserInputError):
        return str(error), 2
    if is_out_of_memory(error):
        return OUT_OF_MEMORY, 2
    if (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "No space left on device" in str(error):
        return "the disk is full: free some room or choose another folder; nothing was kept", 2
    if isinstance(error, PermissionError):
        return f"'{error.filename}' cannot be written: choose a folder that you may write to", 2
    if isinstance(error, VerificationError):
        return f"{error}; nothing was kept", 1
    return f"{type(error).__name__}: {' '.join(str(error).split())} (--debug shows the traceback)", 1


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device or the machine has run out of memory; the CPU allocator raises a plain RuntimeError."""
    import torch

    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def _end(program: str, line: str, code: int) -> None:
    print(f"{program}: error: {line}", file=sys.stderr)
    raise SystemExit(code)
