"""A finished folder to the Hub."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from ..errors import UserInputError


def upload(folder: Path, repo_id: str, private: bool | None = None, token: str | None = None) -> str:
    """Upload a folder in one commit; returns the commit's address.

    Args:
        folder: the finished checkpoint.
        repo_id: where to; made if it does not exist.
        private: whether a new repository is private; None as the account has it.
        token: Hub token; None takes the saved one.

    Raises:
        UserInputError: the Hub refuses it or cannot be reached; the folder stays as it is.
    """
    api = HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        return api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Pruned checkpoint").commit_url
    except (HfHubHTTPError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserInputError(
            f"the checkpoint '{folder}' is complete but could not be pushed to '{repo_id}': {reason}; "
            f"push it with `hf upload {repo_id} {folder}`."
        ) from error
