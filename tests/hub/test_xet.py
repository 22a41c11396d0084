"""The same where hf_xet, which huggingface_hub installs, sends the large files: what a user has who sets nothing."""

import subprocess
import sys

import pytest
from hub.conftest import PUSHED


SCRIPT = """
import sys
from pathlib import Path
from optimum_mllm_prune.checkpoint import upload
from optimum_mllm_prune.errors import UserInputError
for _ in range(2):
    try:
        print(upload(Path(sys.argv[1]), "me/it"))
    except UserInputError as error:
        print(error)
"""


@pytest.fixture
def push(checkpoint, environment):
    """Push twice in another process; gives what it says, a line a push."""

    def run():
        del environment["HF_HUB_DISABLE_XET"]
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, checkpoint], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return run


def test_one_commit_and_nothing_twice(hub, checkpoint, push):
    (first, second) = push()
    (commit,) = hub.repositories["me/it"].history()
    assert first == second == f"{hub.url}/me/it/commit/{commit.oid}"
    assert [name for _, name in commit.operations] == PUSHED
    assert all(commit.files[name].data == (checkpoint / name).read_bytes() for name in PUSHED)
    # Half of the weights are random, the other half is zeros, of which one chunk is enough.
    assert 300_000 < sum(hub.received.values()) < 450_000
    assert not any("/objects/batch" in path for _, path in hub.requests)


def test_a_token_that_may_not_write_large_files(hub, checkpoint, push):
    hub.fail("GET", "/xet-write-token/", 403)
    line = (
        f"the checkpoint '{checkpoint}' is complete but could not be pushed to 'me/it': the token has no right to "
        "write there: take one that may write, or a namespace of yours; push it with "
        f"`hf upload me/it {checkpoint}`."
    )
    assert push() == [line, line]
    assert hub.repositories["me/it"].history() == []
