"""A finished folder to the Hub."""

from pathlib import Path

from huggingface_hub import HfApi

# The base of what its HTTP library raises, whichever library that is.
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import HFValidationError, validate_repo_id

from ..errors import UserInputError, first_line


def check_repo_id(repo_id: str) -> None:
    """Raise UserInputError where the Hub would refuse the name of a repository."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserInputError(
            f"'{repo_id}' is no name of a repository ({first_line(error)}): write me/my-model."
        ) from error


def upload(folder: Path, repo_id: str, private: bool | None = None, token: str | None = None) -> str:
    """Upload a folder in one commit; returns the commit's address.

    Args:
        folder: the finished checkpoint.
        repo_id: where to; made if it does not exist.
        private: whether a new repository is private; None as the account has it.
        token: Hub token; None takes the saved one.

    Raises:
        UserInputError: the Hub refuses it or cannot be reached; the folder stays as it is.
        KeyboardInterrupt: with where the folder is.
    """
    api = HfApi(token=token)
    advice = f"push it with `hf upload {repo_id} {folder}`"
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        return api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Pruned checkpoint").commit_url
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"the checkpoint '{folder}' is complete but was not pushed; {advice}") from None
    except (HTTPError, OSError) as error:
        raise UserInputError(
            f"the checkpoint '{folder}' is complete but could not be pushed to '{repo_id}': {first_line(error)}; "
            f"{advice}."
        ) from error
