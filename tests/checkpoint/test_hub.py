"""Names that the Hub refuses, and pushes that break off."""

from pathlib import Path

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError

from optimum_mllm_prune.checkpoint import check_repo_id, upload
from optimum_mllm_prune.errors import UserInputError


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

    def against(error):
        def fail(*_, **__):
            raise error

        monkeypatch.setattr(HfApi, "create_repo", fail)
        upload(Path("out"), "me/it")

    return against


@pytest.mark.parametrize("error", [HTTPError("no network\nat all"), OSError("no network\nat all")])
def test_a_push_that_fails(push, error):
    with pytest.raises(UserInputError) as told:
        push(error)
    assert str(told.value) == (
        "the checkpoint 'out' is complete but could not be pushed to 'me/it': no network; push it with "
        "`hf upload me/it out`."
    )


def test_ctrl_c_says_what_is_kept(push):
    with pytest.raises(KeyboardInterrupt) as told:
        push(KeyboardInterrupt())
    assert str(told.value) == (
        "the checkpoint 'out' is complete but was not pushed; push it with `hf upload me/it out`"
    )
