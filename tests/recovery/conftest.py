"""A complete teacher cache, and a copy of it that may be damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from recovery import teacher_cache

from optimum_mllm_prune.recovery.teachers import cache_writer


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """A complete cache of ten rows in three shards, to be left as it is."""
    folder = tmp_path_factory.mktemp("caches") / "whole"
    teacher_cache.write(folder)
    return folder


@pytest.fixture
def cache(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "cache"))


@pytest.fixture
def passes(monkeypatch):
    """Numbers of the shards that are computed from now on."""
    numbers = []
    shard = cache_writer._Pass._shard

    def counted(self, number, bar):
        numbers.append(number)
        return shard(self, number, bar)

    monkeypatch.setattr(cache_writer._Pass, "_shard", counted)
    return numbers
