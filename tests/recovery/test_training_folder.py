"""The folder of a broken-off training: found again by the same run, refused to another."""

from pathlib import Path

import pytest

from optimum_mllm_prune import UserInputError
from optimum_mllm_prune.recovery.training_folder import TrainingFolder, fingerprint


def checkpoint(folder, step, whole=True):
    made = folder.path / f"checkpoint-{step}"
    made.mkdir(parents=True)
    (made / "weights").write_text("w")
    if whole:
        (made / "trainer_state.json").write_text("{}")
    return made


def test_a_new_run_starts_anew(tmp_path):
    folder = TrainingFolder(tmp_path / "new" / "out")
    assert folder.path == tmp_path / "new" / "out.training"
    with folder.claimed({"seed": 1}) as last:
        assert last is None
        assert folder.path.is_dir()
    assert folder.path.is_dir()


def test_it_lies_beside_the_folder_that_a_dot_stands_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert TrainingFolder(Path(".")).path == tmp_path.parent / f"{tmp_path.name}.training"
    assert TrainingFolder(Path("out")).path == Path("out.training")


def test_the_same_run_goes_on_at_its_last_whole_checkpoint(tmp_path):
    folder = TrainingFolder(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt), folder.claimed({"seed": 1, "loss": "sft"}):
        checkpoint(folder, 9)
        newest = checkpoint(folder, 10)
        cut = checkpoint(folder, 11, whole=False)
        raise KeyboardInterrupt
    with folder.claimed({"loss": "sft", "seed": 1}) as last:
        assert last == str(newest)
        assert not cut.exists()


def test_a_run_that_fails_before_its_first_checkpoint_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="wrong"), TrainingFolder(tmp_path / "out").claimed({}):
        raise ValueError("wrong")
    assert list(tmp_path.iterdir()) == []


def test_another_run_is_refused(tmp_path):
    folder = TrainingFolder(tmp_path / "out")
    with folder.claimed({"seed": 1}):
        checkpoint(folder, 9)
    with pytest.raises(UserInputError) as error, folder.claimed({"seed": 2}):
        pytest.fail("it must not be claimed")
    assert str(error.value) == (
        f"'{folder.path}' holds a broken-off training of other settings: finish that one, or delete the folder."
    )
    assert (folder.path / "checkpoint-9").is_dir()


def test_it_can_be_written_nowhere(tmp_path):
    (tmp_path / "file").write_text("")
    folder = TrainingFolder(tmp_path / "file" / "out")
    with pytest.raises(UserInputError, match=r"file/out.training' cannot be written \(Not a directory\)"):  # noqa: SIM117
        with folder.claimed({}):
            pytest.fail("it must not be claimed")


def test_it_is_removed_in_the_end(tmp_path):
    folder = TrainingFolder(tmp_path / "out")
    with folder.claimed({}):
        checkpoint(folder, 1)
    folder.remove()
    assert list(tmp_path.iterdir()) == []


def test_fingerprints_look_at_values_and_not_at_order():
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1}) != fingerprint({"a": 1, "b": [3]})
