"""A finished folder to the Hub, in one commit."""

import mmap
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

# The base of what its HTTP library raises, whichever library that is.
from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import HFValidationError, validate_repo_id

from ..errors import UserInputError, first_line
from ..quiet import quiet
from .card import CARD_NAME
from .recovered import read_report


# Names of files and folders that are never pushed, wherever they lie.
UNPUSHED = (".*", "__pycache__", "*.partial", "*.incomplete", "*.lock", "*.tmp")
# What `from_pretrained` would load, perhaps in place of what was pushed last.
WEIGHTS = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
TOKEN = re.compile(rb"hf_(?:oauth_)?[A-Za-z0-9]{20}")
SECONDS_TO_WAIT = 5
_CHANGED = "it was changed meanwhile: look at what came in, or name another branch with --push-revision"
# What the Hub's answers mean, and what to do about them.
_MEANING = {
    401: "the token is missing or invalid: log in with `hf auth login`, or give --token",
    403: "the token has no right to write there: take one that may write, or a namespace of yours",
    404: "the Hub knows no such namespace or revision: look at how they are spelt",
    409: _CHANGED,
    412: _CHANGED,
    429: "the Hub was asked too often: what was sent is kept there, wait some minutes",
}
_OUT_OF_ORDER = "the Hub is out of order ({status}): what was sent is kept there, wait some minutes"
_LOST = "the connection was lost, or there is none: what was sent is kept there, look at the network"


def check_repo_id(repo_id: str) -> None:
    """Raise UserInputError where the Hub would refuse the name of a repository."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserInputError(
            f"'{repo_id}' is no name of a repository ({first_line(error)}): write me/my-model."
        ) from error


def upload(
    folder: Path, repo_id: str, private: bool | None = None, token: str | None = None, revision: str | None = None
) -> str:
    """Upload a folder in one commit, the card last; returns the commit's address.

    Weights of an earlier push that the folder does not have are removed by the same commit. Large files that the Hub
    holds already are not sent again, so that a push that was broken off goes on where it was; where nothing has
    changed there is no new commit, and the address is that of the last one.

    Args:
        folder: the finished checkpoint.
        repo_id: where to; made if it does not exist.
        private: whether a new repository is private; None as the account has it.
        token: Hub token; None takes the saved one.
        revision: branch to push to; made if it does not exist, None is the main one.

    Raises:
        UserInputError: a file seems to hold a token, the repository is public and must not be, or the Hub refuses it
            or cannot be reached; the folder stays as it is.
        KeyboardInterrupt: with where the folder is.
    """
    files = _files(folder)
    _refuse_tokens(folder, files)
    flags = [*(["--private"] if private else []), *(["--revision", revision] if revision else [])]
    advice = f"push it with `{shlex.join(['hf', 'upload', repo_id, str(folder), *flags])}`"
    try:
        with quiet():
            return _push(HfApi(token=token), folder, files, repo_id, private, revision)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"the checkpoint '{folder}' is complete but was not pushed; {advice}") from None
    except UserInputError:
        raise
    # What is raised in the threads that send large files comes as RuntimeError, a card that is refused as ValueError.
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise UserInputError(
            f"the checkpoint '{folder}' is complete but could not be pushed to '{repo_id}': {_reason(error)}; "
            f"{advice}."
        ) from error


def _push(
    api: HfApi, folder: Path, files: Sequence[str], repo_id: str, private: bool | None, revision: str | None
) -> str:
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    before = api.model_info(repo_id, revision=revision)
    if private and not before.private:
        raise UserInputError(
            f"the checkpoint '{folder}' was not pushed: '{repo_id}' exists and is public; make it private in its "
            "settings on the Hub, or leave --private out."
        )

    commit = partial(_commit, api, folder, files, repo_id, revision, before.sha)
    try:
        return commit()
    except HTTPError as error:
        if not _passes(error):
            raise
    time.sleep(SECONDS_TO_WAIT)
    # It sees what the first one has done, even if only the answer was lost.
    return commit()


def _commit(
    api: HfApi, folder: Path, files: Sequence[str], repo_id: str, revision: str | None, parent: str | None
) -> str:
    there = [file.rfilename for file in api.model_info(repo_id, revision=revision).siblings or []]
    stale = [CommitOperationDelete(name) for name in there if name not in files and _is_one_of(name, WEIGHTS)]
    added = [CommitOperationAdd(name, folder / name) for name in files]
    made = api.create_commit(
        repo_id, [*stale, *added], commit_message=_message(folder), revision=revision, parent_commit=parent
    )
    return made.commit_url


def _files(folder: Path) -> list[str]:
    """Names of what is pushed, relative to the folder, with the card at the end."""
    names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    names = [name.as_posix() for name in names if not any(_is_one_of(part, UNPUSHED) for part in name.parts)]
    return sorted(names, key=lambda name: name == CARD_NAME)


def _is_one_of(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _refuse_tokens(folder: Path, files: Sequence[str]) -> None:
    for name in files:
        if _holds_token(folder / name):
            raise UserInputError(
                f"the checkpoint '{folder}' was not pushed: '{name}' seems to hold a Hub token (hf_...); take it out, "
                "and make a new token if anybody else has seen it."
            )


def _holds_token(path: Path) -> bool:
    with path.open("rb") as file:
        if not path.stat().st_size:
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return TOKEN.search(content) is not None


def _message(folder: Path) -> str:
    """What the commit says of the checkpoint, as far as its report tells."""
    report = read_report(folder)
    done = [name for name, key in (("Pruned", "parameters"), ("recovered", "recovery")) if key in report]
    what = " and ".join(done).capitalize() + " checkpoint" if done else "Checkpoint"
    if "parameters" not in report:
        return what
    before, after = (report["parameters"][when] for when in ("before", "after"))
    return f"{what}: {after:,} of {before:,} parameters"


def _passes(error: HTTPError) -> bool:
    """Whether the same request may do well a moment later."""
    status = _status(error)
    return status is None or status == 429 or status >= 500


def _reason(error: BaseException) -> str:
    """What went wrong and what to do about it, told by the error or by what caused it."""
    for cause in _causes(error):
        status = _status(cause)
        if status in _MEANING:
            return _MEANING[status]
        if status is not None and status >= 500:
            return _OUT_OF_ORDER.format(status=status)
        if status is None and isinstance(cause, (HTTPError, ConnectionError)):
            return _LOST
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    # Offline by the user's own wish: that says how to end it.
    while error is not None and not isinstance(error, OfflineModeIsEnabled):
        yield error
        error = error.__cause__


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error tells of; hf_xet, which sends large files, tells it in words alone."""
    if isinstance(error, ConnectionError) and (found := re.search(r"HTTP status \w+ error \((\d{3})", str(error))):
        return int(found[1])
    return getattr(getattr(error, "response", None), "status_code", None)


def save_and_upload(
    save: Callable[[Path], Any],
    repo_id: str,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
) -> str:
    """Save into a temporary folder and upload it; arguments, result and errors as of `upload`.

    What could not be uploaded stays there, and the message names the folder; what could not be saved leaves nothing.

    Args:
        save: writes a finished checkpoint into a folder that does not exist yet.
    """
    check_repo_id(repo_id)
    home = Path(tempfile.mkdtemp(prefix="mllm-prune-"))
    folder = home / repo_id.rpartition("/")[2]
    try:
        save(folder)
    except BaseException:
        with suppress(OSError):
            home.rmdir()
        raise
    address = upload(folder, repo_id, private, token, revision)
    shutil.rmtree(home)
    return address
