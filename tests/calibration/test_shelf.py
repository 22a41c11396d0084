"""What is put on the shelf comes back as it was, from memory or from disk, and nothing stays on disk."""

import errno

import pytest
import torch

from optimum_mllm_prune.calibration import shelf
from optimum_mllm_prune.calibration.shelf import Shelf
from optimum_mllm_prune.errors import UserInputError


DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where temporary folders are made."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("room", [0, 10**6])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_comes_back_as_it_was(dtype, room, folder):
    tensor = (torch.randn(3, 5, generator=torch.Generator().manual_seed(0)) * 9).to(dtype).T
    kept = Shelf(room)
    kept.put("one", tensor)
    kept.put("scalar", tensor[0, 0])
    assert bool(list(folder.iterdir())) == (room == 0)
    assert torch.equal(kept.get("one"), tensor) and kept.get("one").dtype == dtype
    assert torch.equal(kept.get("scalar"), tensor[0, 0])
    assert kept.bytes_here <= room


def test_only_what_has_no_room_goes_to_disk(folder):
    kept, row = Shelf(room=100), torch.arange(10.0)
    for name in ("first", "second", "third"):
        kept.put(name, row)
    assert [file.name for file in folder.rglob("*.dat")] == ["third.dat"]
    kept.drop("first")
    kept.put("third", row + 1)
    assert not list(folder.rglob("*.dat"))
    assert torch.equal(kept.get("third"), row + 1)
    assert "first" not in kept and "second" in kept
    with pytest.raises(KeyError):
        kept.get("first")


def test_histories_are_not_kept():
    kept, weight = Shelf(room=100), torch.ones(3, requires_grad=True)
    kept.put("product", weight * 2)
    assert not kept.get("product").requires_grad


def test_the_folder_goes_with_the_shelf(folder):
    kept = Shelf(room=0)
    kept.put("one", torch.ones(3))
    assert list(folder.iterdir())
    del kept
    assert not list(folder.iterdir())


def test_a_full_disk_is_told(folder, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shelf, "offload_weight", full)
    with pytest.raises(UserInputError) as told:
        Shelf(room=0).put("one", torch.ones(3))
    assert str(told.value) == (
        f"'{folder}' is full, where calibration keeps what does not fit into memory: set TMPDIR to a folder with more "
        "space, or give fewer rows."
    )


def test_another_error_of_the_disk_stays_what_it_is(folder, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(shelf, "offload_weight", broken)
    with pytest.raises(OSError, match="Input/output error"):
        Shelf(room=0).put("one", torch.ones(3))
