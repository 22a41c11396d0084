"""What the Hub may answer instead of doing what is asked."""

import hashlib

import pytest
from hub.conftest import PUSHED, READ_ONLY, TOKEN
from huggingface_hub import constants

from optimum_mllm_prune.checkpoint import upload
from optimum_mllm_prune.errors import UserInputError


pytestmark = pytest.mark.usefixtures("client")
UNAUTHORIZED = "the token is missing or invalid: log in with `hf auth login`, or give --token"
FORBIDDEN = "the token has no right to write there: take one that may write, or a namespace of yours"
NOT_FOUND = "the Hub knows no such namespace or revision: look at how they are spelt"
CHANGED = "it was changed meanwhile: look at what came in, or name another branch with --push-revision"
BUSY = "the Hub was asked too often: what was sent is kept there, wait some minutes"
LARGE, STEPS = "/large/", ["/preupload/", "/objects/batch", "/large/", "/commit/"]


@pytest.fixture
def refused(checkpoint):
    """Push; gives the reason, after checking the rest of the line."""

    def run(repo_id="me/it", token=TOKEN):
        with pytest.raises(UserInputError) as told:
            upload(checkpoint, repo_id, token=token)
        start = f"the checkpoint '{checkpoint}' is complete but could not be pushed to '{repo_id}': "
        end = f"; push it with `hf upload {repo_id} {checkpoint}`."
        line = str(told.value)
        assert line.startswith(start)
        assert line.endswith(end)
        return line.removeprefix(start).removesuffix(end)

    return run


def pushed_whole(hub, checkpoint):
    (commit,) = hub.repositories["me/it"].history()
    return all(commit.files[name].data == (checkpoint / name).read_bytes() for name in PUSHED)


def test_a_token_that_is_none(refused, hub):
    assert refused(token="hf_" + "x" * 34) == UNAUTHORIZED
    assert hub.received == {}


def test_no_token(refused, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    assert refused(token=None) == UNAUTHORIZED


def test_a_token_that_may_only_read(refused, hub):
    assert refused(token=READ_ONLY) == FORBIDDEN
    assert hub.received == {}


def test_somebody_elses_namespace(refused):
    assert refused("you/it") == FORBIDDEN


def test_somebody_elses_repository(refused, hub, checkpoint):
    hub.tokens["hf_you"] = ("you", True)
    upload(checkpoint, "you/it", token="hf_you")
    assert refused("you/it") == FORBIDDEN
    assert len(hub.repositories["you/it"].history()) == 1


@pytest.mark.parametrize(
    ("path", "status", "reason"),
    [
        ("repos/create", 404, NOT_FOUND),
        ("/preupload/", 404, NOT_FOUND),
        ("/objects/batch", 403, FORBIDDEN),
        ("/commit/", 409, CHANGED),
        ("/commit/", 401, UNAUTHORIZED),
        ("/commit/", 429, BUSY),
        ("/preupload/", 429, BUSY),
        ("/objects/batch", 503, "the Hub is out of order (503): what was sent is kept there, wait some minutes"),
        ("/commit/", 500, "the Hub is out of order (500): what was sent is kept there, wait some minutes"),
    ],
)
def test_an_answer_that_stays(refused, hub, path, status, reason):
    hub.fail("POST", path, status)
    assert refused() == reason


def test_large_files_that_are_not_taken(refused, hub):
    hub.fail("PUT", LARGE, 500)
    assert refused() == "the Hub is out of order (500): what was sent is kept there, wait some minutes"


def test_a_commit_came_in_between(refused, hub, checkpoint):
    upload(checkpoint, "me/it", token=TOKEN)
    (checkpoint / "README.md").write_text("# mine\n")
    repository = hub.repositories["me/it"]
    theirs = [("file", "README.md", b"# theirs\n")]
    hub.on("POST", "/commit/", lambda _: repository.commit("main", "theirs", theirs), times=1)
    assert refused() == CHANGED
    assert repository.file("main", "README.md").data == b"# theirs\n"


@pytest.mark.parametrize("status", [429, 500])
@pytest.mark.parametrize("path", STEPS)
def test_an_answer_that_passes(hub, checkpoint, path, status):
    hub.fail("PUT" if path == LARGE else "POST", path, status, times=1)
    upload(checkpoint, "me/it", token=TOKEN)
    assert pushed_whole(hub, checkpoint)


def test_a_commit_whose_answer_is_lost_is_not_made_twice(hub, checkpoint):
    upload(checkpoint, "me/it", token=TOKEN)
    (checkpoint / "model-00002-of-00002.safetensors").unlink()
    (checkpoint / "README.md").write_text("# shorter\n")
    hub.lose_answer("POST", "/commit/")
    address = upload(checkpoint, "me/it", token=TOKEN)
    commits = hub.repositories["me/it"].history()
    assert len(commits) == 2
    assert address == f"{hub.url}/me/it/commit/{commits[-1].oid}"


@pytest.mark.parametrize("part_size", [None, 100_000])
def test_a_connection_that_is_cut_once(hub, checkpoint, part_size):
    hub.part_size = part_size
    content = (checkpoint / "model-00002-of-00002.safetensors").read_bytes()
    hub.cut(hashlib.sha256(content).hexdigest(), after=150_000)
    upload(checkpoint, "me/it", token=TOKEN)
    assert pushed_whole(hub, checkpoint)


def test_no_network_at_all(refused, hub):
    hub.down = True
    lost = "the connection was lost, or there is none: what was sent is kept there, look at the network"
    assert refused() == lost


def test_a_card_that_the_hub_does_not_take(refused, hub, checkpoint):
    (checkpoint / "README.md").write_text("---\ntags: pruning\n---\n")
    assert refused() == 'Invalid metadata in README.md. - "tags" must be an array'
    assert hub.received == {}
