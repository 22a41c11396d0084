"""The package's own exceptions, and what is told of those of others. Only light imports."""

# What torch's allocators, the CUDA driver and Python say.
_OUT_OF_MEMORY = (
    "OutOfMemoryError",
    "MemoryError",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "allocate memory",
)


class UserInputError(ValueError):
    """The user's input is wrong.

    The message is one line that says what is wrong and what to do instead. The commands print it to stderr without a
    traceback and exit with code 2.
    """


class VerificationError(RuntimeError):
    """The saved checkpoint is not the model in memory, and was deleted."""


def note_kept(error: BaseException, what: str) -> None:
    """Say of an error what the work before it has left behind; who says it first is heard."""
    if not hasattr(error, "kept"):
        error.kept = what


def what_is_kept(error: BaseException) -> str:
    """What an error says is left behind."""
    return getattr(error, "kept", "nothing was kept")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].strip()


def is_out_of_memory(error: BaseException | str) -> bool:
    """Whether an error, or the last line that another process said of one, means that memory ran out."""
    said = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    return any(words in said for words in _OUT_OF_MEMORY)
