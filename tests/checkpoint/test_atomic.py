"""An output folder appears whole or not at all."""

import os
import shutil
import signal
import stat
from collections import namedtuple
from pathlib import Path

import pytest
from checkpoint.tiny_llava import tree

from optimum_mllm_prune.checkpoint import atomic_folder, check_output
from optimum_mllm_prune.errors import UserInputError


class Surprise(BaseException):
    """Neither an Exception nor anything that is expected."""


@pytest.fixture
def old(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "old.txt").write_text("old")
    return folder


def fill(folder):
    (folder / "new.txt").write_text("new")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def interruptible():
    """A runner in the background of a shell ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class TestAtomicFolder:
    @pytest.mark.parametrize("output", ["out", "some/new/out"])
    def test_it_appears_at_the_end(self, tmp_path, output):
        output = tmp_path / output
        with atomic_folder(output) as folder:
            fill(folder)
            assert not output.exists()
            assert folder.parent == output.parent
        assert names(output) == ["new.txt"]
        assert names(output.parent) == ["out"]

    def test_it_replaces_all(self, old):
        with atomic_folder(old) as folder:
            fill(folder)
            assert names(old) == ["old.txt"]
        assert names(old) == ["new.txt"]
        assert names(old.parent) == ["out"]

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, Surprise])
    def test_a_failure_leaves_the_old_one(self, old, error):
        before = tree(old.parent)
        with pytest.raises(error), atomic_folder(old) as folder:
            fill(folder)
            raise error
        assert names(old) == ["old.txt"]
        assert tree(old.parent) == before

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_a_failure_leaves_nothing_new(self, tmp_path, error):
        with pytest.raises(error), atomic_folder(tmp_path / "some" / "new" / "out") as folder:
            fill(folder)
            raise error
        assert list(tmp_path.iterdir()) == []

    def test_folders_on_the_way_that_were_there_stay(self, tmp_path):
        (tmp_path / "some").mkdir()
        with pytest.raises(ValueError, match="no"), atomic_folder(tmp_path / "some" / "new" / "out"):
            raise ValueError("no")
        assert names(tmp_path) == ["some"]
        assert names(tmp_path / "some") == []

    def test_the_old_one_comes_back_when_the_new_one_cannot_take_its_place(self, old, monkeypatch):
        rename = Path.rename

        def refuse(self, target):
            if self.name.endswith(".partial"):
                raise OSError("no")
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", refuse)
        with pytest.raises(OSError, match="no"), atomic_folder(old) as folder:
            fill(folder)
        assert names(old) == ["old.txt"]
        assert names(old.parent) == ["out"]

    @pytest.mark.usefixtures("interruptible")
    @pytest.mark.parametrize("moment", ["old aside", "new in place"])
    def test_ctrl_c_does_not_cut_the_swap_in_two(self, old, monkeypatch, moment):
        rename, renamed = Path.rename, []

        def interrupting(self, target):
            done = rename(self, target)
            renamed.append(target)
            if len(renamed) == ["old aside", "new in place"].index(moment) + 1:
                os.kill(os.getpid(), signal.SIGINT)
            return done

        monkeypatch.setattr(Path, "rename", interrupting)
        with pytest.raises(KeyboardInterrupt, match=r"^'.*/out' is complete$"), atomic_folder(old) as folder:
            fill(folder)
        assert names(old) == ["new.txt"]
        assert names(old.parent) == ["out"]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    @pytest.mark.usefixtures("interruptible")
    def test_a_second_ctrl_c_does_not_leave_half_a_folder(self, tmp_path, monkeypatch):
        rmtree = shutil.rmtree

        def interrupting(folder, **options):
            os.kill(os.getpid(), signal.SIGINT)
            rmtree(folder, **options)

        monkeypatch.setattr(shutil, "rmtree", interrupting)
        with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "out") as folder:
            fill(folder)
            raise KeyboardInterrupt
        assert names(tmp_path) == []

    def test_a_link_is_replaced_and_its_target_kept(self, old, tmp_path):
        (tmp_path / "link").symlink_to(old, target_is_directory=True)
        with atomic_folder(tmp_path / "link") as folder:
            fill(folder)
        assert names(tmp_path / "link") == ["new.txt"]
        assert names(old) == ["old.txt"]

    @pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
    def test_rights_are_those_of_any_new_file(self, tmp_path, mask):
        before = os.umask(mask)
        try:
            with atomic_folder(tmp_path / "out") as folder:
                fill(folder)
                (folder / "new.txt").chmod(0o600)
                (folder / "inner").mkdir(0o700)
                (folder / "inner" / "more.txt").touch(0o600)
            assert os.umask(mask) == mask
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o777 & ~mask
        assert stat.S_IMODE((tmp_path / "out" / "new.txt").stat().st_mode) == 0o666 & ~mask
        # A folder that may not be entered would hide what is in it from all but root.
        assert stat.S_IMODE((tmp_path / "out" / "inner").stat().st_mode) == 0o777 & ~mask
        assert stat.S_IMODE((tmp_path / "out" / "inner" / "more.txt").stat().st_mode) == 0o666 & ~mask

    def test_no_folder_can_be_made(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(UserInputError, match="cannot be written"), atomic_folder(tmp_path / "file" / "out"):
            pytest.fail("the block must not run")
        assert names(tmp_path) == ["file"]


class TestCheckOutput:
    def test_nothing_is_made(self, tmp_path):
        output = tmp_path / "some" / "out"
        assert check_output(str(output), overwrite=False) == output
        assert list(tmp_path.iterdir()) == []

    def test_an_empty_folder_may_be_filled(self, tmp_path):
        (tmp_path / "out").mkdir()
        assert check_output(tmp_path / "out", overwrite=False)

    def test_a_full_folder_only_on_request(self, old):
        assert check_output(old, overwrite=True) == old
        with pytest.raises(UserInputError, match="exists already: name another folder, or add --overwrite"):
            check_output(old, overwrite=False)

    def test_a_file_never(self, old):
        with pytest.raises(UserInputError, match="is a file: name a folder for the output"):
            check_output(old / "old.txt", overwrite=True)

    @pytest.mark.parametrize("output", [".", "..", "../inner"])
    def test_the_current_folder_never(self, tmp_path, monkeypatch, output):
        (tmp_path / "inner").mkdir()
        monkeypatch.chdir(tmp_path / "inner")
        with pytest.raises(UserInputError, match="holds the folder you are in"):
            check_output(output, overwrite=True)

    def test_a_link_to_nothing(self, tmp_path):
        (tmp_path / "out").symlink_to(tmp_path / "gone")
        with pytest.raises(UserInputError, match="is a link to nothing: remove it or name another folder"):
            check_output(tmp_path / "out", overwrite=True)

    @pytest.mark.parametrize("output", ["all", "all/model", "link", "all/model/.."])
    @pytest.mark.parametrize("overwrite", [True, False])
    def test_never_what_holds_a_source(self, tmp_path, monkeypatch, output, overwrite):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "all" / "model").mkdir(parents=True)
        (tmp_path / "all" / "model" / "config.json").write_text("{}")
        (tmp_path / "link").symlink_to(tmp_path / "all" / "model")
        with pytest.raises(UserInputError) as error:
            check_output(output, overwrite, sources=[None, "me/on-the-hub", "all/model"])
        assert str(error.value) == f"'{output}' holds 'all/model', which this run reads: name another folder."

    def test_never_what_holds_a_link_to_a_source(self, old, tmp_path):
        (tmp_path / "rows").mkdir()
        (old / "rows").symlink_to(tmp_path / "rows")
        with pytest.raises(UserInputError, match="which this run reads"):
            check_output(old, overwrite=True, sources=[old / "rows"])

    def test_a_folder_beside_or_inside_a_source_may_be_written(self, old, tmp_path):
        assert check_output(tmp_path / "out2", overwrite=True, sources=[old])
        assert check_output(old / "pruned", overwrite=True, sources=[old])

    @pytest.mark.parametrize(("needed", "enough"), [(1000, True), (1001, False)])
    def test_room_on_the_disk(self, tmp_path, monkeypatch, needed, enough):
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(5000, 4000, 1000))
        if enough:
            assert check_output(tmp_path / "out", False, needed)
        else:
            with pytest.raises(
                UserInputError, match=r"has 0\.00 GB left and the checkpoint needs 0\.00 GB: free some"
            ):
                check_output(tmp_path / "out", False, needed)
