"""Names that the Hub refuses, and pushes that break off without a Hub; tests/hub has those that reach one."""

from pathlib import Path

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

from optimum_mllm_prune.checkpoint import check_repo_id, upload
from optimum_mllm_prune.errors import UserInputError


LOST = "the connection was lost, or there is none: what was sent is kept there, look at the network"


@pytest.mark.parametrize("repo_id", ["me/my-model", "my-model", "me/v1.5_x"])
def test_names_of_repositories(repo_id):
    check_repo_id(repo_id)


@pytest.mark.parametrize("repo_id", ["me/my model", "a/b/c", "-me/x", "me/x.git", "", "me/" + "x" * 200])
def test_no_names_of_repositories(repo_id):
    with pytest.raises(UserInputError) as error:
        check_repo_id(repo_id)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"'{repo_id}' is no name of a repository (")
    assert str(error.value).endswith("): write me/my-model.")


@pytest.fixture
def push(monkeypatch):
    """Push to a Hub that answers with an error."""

    def against(error, folder="out", **options):
        def fail(*_, **__):
            raise error

        monkeypatch.setattr(HfApi, "create_repo", fail)
        upload(Path(folder), "me/it", **options)

    return against


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (HTTPError("no network\nat all"), LOST),
        (ConnectionError("Network error: Request error: error sending request for url"), LOST),
        # As hf_xet says it, which sends large files.
        (ConnectionError("Network error: Request error: HTTP status client error (401 Unauthorized), domain: any"),
         "the token is missing or invalid: log in with `hf auth login`, or give --token"),
        (ConnectionError("Network error: Request error: HTTP status server error (502 Bad Gateway), domain: any"),
         "the Hub is out of order (502): what was sent is kept there, wait some minutes"),
        (OfflineModeIsEnabled("offline mode is enabled.\nUnset `HF_HUB_OFFLINE`."),
         "offline mode is enabled. Unset `HF_HUB_OFFLINE`"),
        (OSError("the disk\nis gone."), "the disk is gone"),
        (RuntimeError(), "RuntimeError"),
    ],
)  # fmt: skip
def test_a_push_that_fails(push, error, reason):
    with pytest.raises(UserInputError) as told:
        push(error)
    assert str(told.value) == (
        f"the checkpoint 'out' is complete but could not be pushed to 'me/it': {reason}; push it with "
        "`hf upload me/it out`."
    )


def test_ctrl_c_says_what_is_kept(push):
    with pytest.raises(KeyboardInterrupt) as told:
        push(KeyboardInterrupt(), "my out", private=True, revision="next")
    assert str(told.value) == (
        "the checkpoint 'my out' is complete but was not pushed; push it with "
        "`hf upload me/it 'my out' --private --revision next`"
    )
