"""A folder to the Hub: one commit, nothing twice, nothing that is not the checkpoint's."""

import hashlib
import os
import signal
import subprocess
import sys
import threading

import pytest
from hub.conftest import PUSHED, TOKEN

from optimum_mllm_prune.checkpoint import upload
from optimum_mllm_prune.errors import UserInputError


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
pytestmark = pytest.mark.usefixtures("client")


def push(folder, repo_id="me/it", **options):
    return upload(folder, repo_id, token=TOKEN, **options)


def oid(folder, name):
    return hashlib.sha256((folder / name).read_bytes()).hexdigest()


def test_one_commit_with_the_card_last(hub, checkpoint):
    address = push(checkpoint, private=True)
    (commit,) = hub.repositories["me/it"].history()
    assert address == f"{hub.url}/me/it/commit/{commit.oid}"
    assert commit.message == "Pruned checkpoint: 1,500 of 2,000 parameters"
    assert [name for _, name in commit.operations] == PUSHED
    assert {name: commit.files[name].data for name in PUSHED} == {
        name: (checkpoint / name).read_bytes() for name in PUSHED
    }
    assert hub.repositories["me/it"].private
    assert hub.repositories["me/it"].branches == {"main": commit.oid}


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ('{"parameters": {"before": 2000, "after": 1500}, "recovery": {}}',
         "Pruned and recovered checkpoint: 1,500 of 2,000 parameters"),
        ('{"recovery": {}}', "Recovered checkpoint"),
        ("{}", "Checkpoint"),
    ],
)  # fmt: skip
def test_what_the_commit_says(hub, checkpoint, report, message):
    (checkpoint / "pruning_report.json").write_text(report)
    push(checkpoint)
    assert hub.repositories["me/it"].history()[-1].message == message


def test_a_repository_without_an_owner_is_the_users(hub, checkpoint):
    push(checkpoint, "it")
    assert list(hub.repositories) == ["me/it"]
    assert not hub.repositories["me/it"].private


def test_large_files_in_parts(hub, checkpoint):
    hub.part_size = 70_000
    push(checkpoint)
    commit = hub.repositories["me/it"].history()[-1]
    assert commit.files[SECOND].data == (checkpoint / SECOND).read_bytes()
    assert sum("/large/" in path and path.endswith("/5") for _, path in hub.requests) == 2


def test_a_branch(hub, checkpoint):
    push(checkpoint)
    main = hub.repositories["me/it"].branches["main"]
    (checkpoint / "config.json").write_text('{"changed": true}')
    for _ in range(2):
        push(checkpoint, revision="next/one")
    (_, commit) = hub.repositories["me/it"].history()
    assert hub.repositories["me/it"].branches == {"main": main, "next/one": commit.oid}


def test_an_unchanged_folder_makes_no_commit(hub, checkpoint):
    first = push(checkpoint)
    sent = dict(hub.received)
    assert push(checkpoint) == first
    assert len(hub.repositories["me/it"].history()) == 1
    assert hub.received == sent


def test_a_changed_card_alone_is_sent(hub, checkpoint):
    push(checkpoint)
    sent = dict(hub.received)
    (checkpoint / "README.md").write_text("# another\n")
    push(checkpoint)
    assert hub.repositories["me/it"].history()[-1].operations == [("file", "README.md")]
    assert hub.received == sent


def test_weights_of_an_earlier_push_do_not_stay(hub, checkpoint):
    (checkpoint / "adapter").mkdir()
    others = [checkpoint / "adapter" / "adapter_model.safetensors", checkpoint / "tokenizer.json"]
    others[0].write_bytes(b"")
    push(checkpoint)
    for name in (FIRST, SECOND, "model.safetensors.index.json"):
        (checkpoint / name).unlink()
    (checkpoint / "model.safetensors").write_bytes(bytes(1000))
    for path in others:
        path.unlink()
    push(checkpoint)
    files = hub.repositories["me/it"].history()[-1].files
    assert [name for name in files if name.startswith("model")] == ["model.safetensors"]
    assert {str(path.relative_to(checkpoint)) for path in others} < files.keys()
    assert len(hub.repositories["me/it"].history()) == 2


@pytest.mark.parametrize("token", [TOKEN, "hf_oauth_" + "x" * 30], ids=["user", "oauth"])
@pytest.mark.parametrize("name", ["config.json", SECOND])
def test_a_file_with_a_token_is_refused_before_anything_is_sent(hub, checkpoint, name, token):
    with open(checkpoint / name, "ab") as file:
        file.write(f"see {token}.".encode())
    with pytest.raises(UserInputError) as told:
        push(checkpoint)
    assert str(told.value) == (
        f"the checkpoint '{checkpoint}' was not pushed: '{name}' seems to hold a Hub token (hf_...); take it out, and "
        "make a new token if anybody else has seen it."
    )
    assert hub.requests == []


def test_private_weights_do_not_go_into_a_public_repository(hub, checkpoint):
    push(checkpoint)
    before = len(hub.sent)
    with pytest.raises(UserInputError) as told:
        push(checkpoint, private=True)
    assert str(told.value) == (
        f"the checkpoint '{checkpoint}' was not pushed: 'me/it' exists and is public; make it private in its settings "
        "on the Hub, or leave --private out."
    )
    assert len(hub.sent) == before + 1  # the question whether it exists


def break_off(hub, folder, how):
    """In the middle of the second file of weights, once the Hub has the first."""

    def happens():
        while oid(folder, FIRST) not in hub.repositories["me/it"].blobs:
            threading.Event().wait(0.01)
        how()

    hub.cut(oid(folder, SECOND), after=100_000, happens=happens)


def assert_goes_on(hub, folder):
    """What is there is not sent again, and one commit holds all."""
    partly = hub.received[oid(folder, SECOND)]
    assert 100_000 < partly < 300_000
    push(folder)
    assert hub.received == {
        oid(folder, FIRST): 300_000,
        oid(folder, SECOND): partly + 300_000,
        oid(folder, "recovery_losses.png"): 4,
    }
    (commit,) = hub.repositories["me/it"].history()
    assert commit.files[SECOND].data == (folder / SECOND).read_bytes()


def test_a_push_goes_on_where_the_network_was_lost(hub, checkpoint):
    break_off(hub, checkpoint, lambda: setattr(hub, "down", True))
    with pytest.raises(UserInputError) as told:
        push(checkpoint)
    assert str(told.value) == (
        f"the checkpoint '{checkpoint}' is complete but could not be pushed to 'me/it': the connection was lost, or "
        "there is none: what was sent is kept there, look at the network; push it with "
        f"`hf upload me/it {checkpoint}`."
    )
    assert hub.repositories["me/it"].history() == []
    hub.down = False
    assert_goes_on(hub, checkpoint)


def test_a_push_goes_on_where_its_process_was_killed(hub, checkpoint, environment):
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from optimum_mllm_prune.checkpoint import upload\n"
        "upload(Path(sys.argv[1]), 'me/it')\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, checkpoint], env=environment, stderr=subprocess.DEVNULL)
    break_off(hub, checkpoint, process.kill)
    assert process.wait(120) == -signal.SIGKILL
    assert hub.repositories["me/it"].history() == []
    assert_goes_on(hub, checkpoint)


def test_ctrl_c_says_how_to_go_on(hub, checkpoint, monkeypatch):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        hub.cut(oid(checkpoint, SECOND), after=100_000, happens=lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt) as told:
            push(checkpoint, private=True, revision="next")
    finally:
        signal.signal(signal.SIGINT, before)
    assert str(told.value) == (
        f"the checkpoint '{checkpoint}' is complete but was not pushed; push it with "
        f"`hf upload me/it {checkpoint} --private --revision next`"
    )
    assert hub.repositories["me/it"].history() == []
    push(checkpoint, private=True, revision="next")
    assert len(hub.repositories["me/it"].history()) == 1
