"""An output folder that appears whole or not at all."""

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from accelerate.utils.memory import clear_device_cache

from ..errors import UserInputError


def check_output(
    output: str | Path, overwrite: bool, needed_bytes: int = 0, sources: Iterable[str | Path | None] = ()
) -> Path:
    """The output folder, if it can be written; nothing is created.

    Args:
        output: where the checkpoint is to lie.
        overwrite: whether an existing folder may be replaced.
        needed_bytes: what will be written.
        sources: what the run reads, as far as it is local: none of it may lie in the folder that is replaced.

    Raises:
        UserInputError: it exists, holds a source, cannot be written, or the disk has too little room.
    """
    output = Path(output)
    try:
        exists = output.exists()
    except OSError as error:
        raise UserInputError(f"'{output}' cannot be written ({error.strerror}): choose another name.") from error
    if output.is_symlink() and not exists:
        raise UserInputError(f"'{output}' is a link to nothing: remove it or name another folder.")
    if exists and not output.is_dir():
        raise UserInputError(f"'{output}' is a file: name a folder for the output.")
    _refuse_sources(output, sources)
    if exists and any(output.iterdir()) and not overwrite:
        raise UserInputError(f"'{output}' exists already: name another folder, or add --overwrite to replace it.")
    if output.resolve() in (Path.cwd(), *Path.cwd().parents):
        raise UserInputError(f"'{output}' holds the folder you are in, which cannot be replaced: name another folder.")
    home = _existing_parent(output)
    if not home.is_dir() or not os.access(home, os.W_OK | os.X_OK):
        raise UserInputError(f"'{output}' cannot be written: choose a folder that you may write to.")
    free = shutil.disk_usage(home).free
    if free < needed_bytes:
        raise UserInputError(
            f"the disk of '{output}' has {_gb(free)} left and the checkpoint needs {_gb(needed_bytes)}: "
            "free some room or choose another folder."
        )
    return output


@contextmanager
def atomic_folder(output: Path) -> Iterator[Path]:
    """A temporary folder beside `output` that takes its place when the block ends well, and vanishes otherwise.

    Raises:
        UserInputError: no folder can be made there.
    """
    absent = [folder for folder in output.absolute().parents if not folder.exists()]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".partial", dir=output.parent))
    except OSError as error:
        _remove_empty(absent)
        raise UserInputError(f"'{output}' cannot be written ({error.strerror}): choose another folder.") from error
    try:
        yield temporary
        _open_up(temporary)
        with _whole(f"'{output}' is complete"):
            _replace(temporary, output)
    except BaseException:
        with _whole():
            shutil.rmtree(temporary, ignore_errors=True)
            _remove_empty(absent)
        raise


def _refuse_sources(output: Path, sources: Iterable[str | Path | None]) -> None:
    for source in sources:
        path = Path(source or "").expanduser()
        if not source or not path.exists():
            continue
        # A link in the output is lost as well as what lies there.
        for found in (Path(os.path.abspath(path)), path.resolve()):
            if found.is_relative_to(output.resolve()):
                raise UserInputError(f"'{output}' holds '{source}', which this run reads: name another folder.")


@contextmanager
def _whole(done: str = "") -> Iterator[None]:
    """A few quick steps that Ctrl-C must not cut in two: it is raised after them, and says what is `done`."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    received = []
    signal.signal(signal.SIGINT, lambda *_: received.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if received:
        raise KeyboardInterrupt(*[done] if done else [])


def free_memory() -> None:
    """Give back what is not used any more. Python would swallow a Ctrl-C that comes while destructors run."""
    with _whole():
        clear_device_cache(garbage_collection=True)


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove what was made on the way to an output that did not come about; folders with content stay."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _open_up(folder: Path) -> None:
    """Give a folder and all in it the rights of new ones: temporary folders and weight files are private."""
    mask = _umask()
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def _replace(new: Path, old: Path) -> None:
    if not old.exists():
        new.rename(old)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{old.name}.", suffix=".old", dir=old.parent))
    old.rename(aside / old.name)
    try:
        new.rename(old)
    except BaseException:
        (aside / old.name).rename(old)
        aside.rmdir()
        raise
    shutil.rmtree(aside)


def _existing_parent(output: Path) -> Path:
    path = output.absolute()
    while not path.exists():
        path = path.parent
    return path if path != output.absolute() else path.parent


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, whatever happens."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """The new name must be on the disk too."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
