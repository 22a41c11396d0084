"""A pass that is broken off, killed, or dealt out to several processes."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from recovery import teacher_cache

from optimum_mllm_prune.recovery.teachers import cache_index, cache_writer
from optimum_mllm_prune.recovery.teachers.cache_index import CacheIndex, is_complete


TESTS = Path(__file__).parents[2]


def test_a_disk_that_fills_up_keeps_finished_shards(tmp_path, monkeypatch, passes):
    folder, fsync, left = tmp_path / "cache", os.fsync, [6]

    def full(handle):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    assert teacher_cache.refusal(folder) == (
        "the disk is full at shard 3 of 3 of the teacher cache: free some room and run again; finished shards are "
        "kept."
    )
    assert sorted(os.listdir(folder)) == ["index.json", *teacher_cache.SHARDS[:2]]
    monkeypatch.undo()
    teacher_cache.write(folder)
    assert is_complete(folder)


def test_a_file_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    def broken_off(*_):
        raise KeyboardInterrupt

    (tmp_path / "old").write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", broken_off)
        for name in ("old", "new"):
            with pytest.raises(KeyboardInterrupt):
                cache_index.write_whole(tmp_path / name, b"content")
    assert teacher_cache.content(tmp_path) == {"old": b"old"}
    cache_index.write_whole(tmp_path / "old", b"content")
    assert teacher_cache.content(tmp_path) == {"old": b"content"}


def test_a_broken_off_pass_goes_on(tmp_path, whole, monkeypatch):
    folder = tmp_path / "cache"
    with monkeypatch.context() as patch:
        shard = cache_writer._Pass._shard

        def breaking(self, number, bar):
            if number == 2:
                raise KeyboardInterrupt
            return shard(self, number, bar)

        patch.setattr(cache_writer._Pass, "_shard", breaking)
        with pytest.raises(KeyboardInterrupt):
            teacher_cache.write(folder)
    assert not is_complete(folder)
    kept = {name: (folder / name).stat().st_mtime_ns for name in teacher_cache.SHARDS[:2]}
    teacher_cache.write(folder)
    assert kept == {name: (folder / name).stat().st_mtime_ns for name in teacher_cache.SHARDS[:2]}
    assert teacher_cache.content(folder) == teacher_cache.content(whole)


def test_a_complete_cache_is_left_alone(cache, passes):
    before = teacher_cache.content(cache)
    told = []
    teacher_cache.write(cache, report=told.append)
    assert (teacher_cache.content(cache), passes, told) == (before, [], [])


def test_a_missing_or_shortened_shard_is_written_again(cache, whole, passes):
    (cache / teacher_cache.SHARDS[0]).unlink()
    (cache / teacher_cache.SHARDS[1]).write_bytes((cache / teacher_cache.SHARDS[1]).read_bytes()[:-7])
    teacher_cache.write(cache)
    assert passes == [0, 1]
    assert teacher_cache.content(cache) == teacher_cache.content(whole)


def test_another_damaged_shard_is_not_taken_for_good(cache, whole):
    (cache / teacher_cache.SHARDS[0]).unlink()
    damaged = bytearray((cache / teacher_cache.SHARDS[1]).read_bytes())
    damaged[-1] ^= 1
    (cache / teacher_cache.SHARDS[1]).write_bytes(damaged)
    assert teacher_cache.write(cache).shards == CacheIndex.load(whole).shards


KILLED = """
import sys, time
sys.path[:0] = [{tests!r}]
import torch
torch.set_num_threads(1)
from recovery import teacher_cache
from optimum_mllm_prune.recovery.teachers import cache_writer

shard = cache_writer._Pass._shard

def slow(self, number, bar):
    if number == 2:
        (self.folder / ".half.partial").write_bytes(b"half")
        time.sleep(600)
    return shard(self, number, bar)

cache_writer._Pass._shard = slow
teacher_cache.write({folder!r})
"""


def test_sigkill_loses_at_most_the_shard_in_work(tmp_path, whole, passes):
    folder = tmp_path / "cache"
    script = KILLED.format(tests=str(TESTS), folder=str(folder))
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 120
    while not (folder / ".half.partial").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    said, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, said.decode()
    assert sorted(os.listdir(folder)) == [".half.partial", "index.json", *teacher_cache.SHARDS[:2]]
    teacher_cache.write(folder)
    assert passes == [2]
    (folder / ".half.partial").unlink()
    assert teacher_cache.content(folder) == teacher_cache.content(whole)


OF_TWO = """
import sys
sys.path[:0] = [{tests!r}]
import torch
torch.set_num_threads(1)
from recovery import teacher_cache
from accelerate import PartialState
from optimum_mllm_prune.recovery.teachers import cache_writer

shard = cache_writer._Pass._shard

def counted(self, number, bar):
    print("shard", number, flush=True)
    return shard(self, number, bar)

cache_writer._Pass._shard = counted
state = PartialState(cpu=True)
print("processes", state.num_processes, flush=True)
teacher_cache.write({folder!r}, report=lambda line: print("told", flush=True))
state.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_share_the_shards(tmp_path, whole):
    folder = tmp_path / "cache"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    script = OF_TWO.format(tests=str(TESTS), folder=str(folder))
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        ended = [process.communicate(timeout=240) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], ended
    lines = [[line for line in out.splitlines() if line] for out, _ in ended]
    assert lines[0] == ["processes 2", "told", "shard 0", "shard 2"]
    assert lines[1] == ["processes 2", "shard 1"]
    assert is_complete(folder)
    teacher_cache.assert_close(folder, whole)
