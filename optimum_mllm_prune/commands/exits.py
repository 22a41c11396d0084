"""How a command ends: exit codes, and one line on stderr.

Only light imports here: Ctrl-C while torch is being imported ends like any other.
"""

import errno
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from optimum.commands.base import BaseOptimumCLICommand

from ..errors import UserInputError, VerificationError, is_out_of_memory


INTERRUPTED = 130
OUT_OF_MEMORY = (
    "out of memory: lower --batch-size or --num-samples, add --gradient-checkpointing, choose an importance without "
    "gradients (activation, magnitude_l2), or another --device"
)


def carry_out(command: BaseOptimumCLICommand, module: str) -> None:
    """Call `run` of a module beside this one with the command's arguments; ends the process with its exit code.

    The module is imported here: torch takes seconds, in which Ctrl-C must end the command as it does later.
    """
    with exit_codes(command.parser.prog, command.args.debug):
        import_module(f".{module}", __package__).run(command.args)


@contextmanager
def exit_codes(program: str, debug: bool) -> Iterator[None]:
    """Turn exceptions into one line and an exit code: 2 what the user can mend, 1 anything else, 130 Ctrl-C.

    Args:
        program: named at the start of the line.
        debug: print the traceback before the line.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        # Where something was kept after all, the stage that kept it says so.
        _end(program, f"interrupted; {str(error) or 'nothing was kept'}", INTERRUPTED)
    except Exception as error:
        if debug:
            traceback.print_exc()
        _end(program, *_told(error))


def _told(error: Exception) -> tuple[str, int]:
    if isinstance(error, UserInputError):
        return str(error), 2
    if is_out_of_memory(error):
        return OUT_OF_MEMORY, 2
    if _is_disk_full(error):
        return "the disk is full: free some room or choose another folder; nothing was kept", 2
    if isinstance(error, PermissionError):
        return f"you have no right to open '{error.filename}': give another, or change its rights", 2
    if isinstance(error, VerificationError):
        return f"{error}; nothing was kept", 1
    return f"{type(error).__name__}: {' '.join(str(error).split())} (--debug shows the traceback)", 1


def _is_disk_full(error: Exception) -> bool:
    """Whether the disk or the user's share of it is used up; safetensors says so in words alone."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(words in str(error) for words in ("No space left on device", "quota exceeded"))


def _end(program: str, line: str, code: int) -> None:
    _close_bars()
    print(f"{program}: error: {line}", file=sys.stderr)
    raise SystemExit(code)


def _close_bars() -> None:
    """End the lines of progress bars that an exception left open, or the error would stand behind one of them."""
    bars = getattr(sys.modules.get("tqdm"), "tqdm", None)
    for bar in list(getattr(bars, "_instances", ())):
        bar.close()
