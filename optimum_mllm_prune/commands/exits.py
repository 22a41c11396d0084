"""How a command ends: exit codes, and one line on stderr.

Only light imports here: Ctrl-C while torch is being imported ends like any other.
"""

import errno
import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from optimum.commands.base import BaseOptimumCLICommand

from ..errors import UserInputError, VerificationError, is_out_of_memory, what_is_kept


INTERRUPTED = 130


def carry_out(command: BaseOptimumCLICommand, module: str, less_memory: str) -> None:
    """Call `run` of a module beside this one with the command's arguments; ends the process with its exit code.

    The module is imported here: torch takes seconds, in which Ctrl-C must end the command as it does later.
    `less_memory` as for `exit_codes`.
    """
    # On a machine without a GPU it warns of kernels that nothing here asks for, as soon as peft imports it.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    with exit_codes(command.parser.prog, command.args.debug, less_memory):
        import_module(f".{module}", __package__).run(command.args)


@contextmanager
def exit_codes(program: str, debug: bool, less_memory: str) -> Iterator[None]:
    """Turn exceptions into one line and an exit code: 2 what the user can mend, 1 anything else, 130 Ctrl-C.

    Args:
        program: named at the start of the line.
        debug: print the traceback before the line.
        less_memory: what to do where memory ran out.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        _end(program, f"interrupted; {str(error) or what_is_kept(error)}", INTERRUPTED)
    except Exception as error:
        if debug:
            traceback.print_exc()
        _end(program, *_told(error, less_memory))


def _told(error: Exception, less_memory: str) -> tuple[str, int]:
    if isinstance(error, UserInputError):
        return str(error), 2
    if is_out_of_memory(error):
        return f"out of memory: {less_memory}", 2
    if _is_disk_full(error):
        return f"the disk is full: free some room or choose another folder; {what_is_kept(error)}", 2
    if isinstance(error, PermissionError):
        return f"you have no right to open '{error.filename}': give another, or change its rights", 2
    if isinstance(error, VerificationError):
        return f"{error}; {what_is_kept(error)}", 1
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
