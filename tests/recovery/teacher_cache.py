"""A small teacher, rows with and without images, and a cache of them."""

from __future__ import annotations

import copy

import pytest
import torch
from checkpoint import tiny_llava
from safetensors.torch import load_file

from optimum_mllm_prune import UserInputError
from optimum_mllm_prune.calibration.rows import Rows, open_rows
from optimum_mllm_prune.recovery.recipe import Recipe, loss_weights
from optimum_mllm_prune.recovery.teachers.cache_writer import write_cache
from optimum_mllm_prune.recovery.teachers.live import LiveTeacher


VOCABULARY = 384
ROWS = 10
SHARDS = ["shard-00000.safetensors", "shard-00001.safetensors", "shard-00002.safetensors"]


def recipe(loss: str = "sft+hidden+kd", **others) -> Recipe:
    return Recipe(loss_weights(loss), **others)


def rows(answers: tuple[str, ...] = ()) -> Rows:
    """Rows 1, 5 and 9 have no image; the first answers can be replaced."""
    raw = [dict(row) for row in tiny_llava.rows()][:ROWS]
    for number in range(1, len(raw), 4):
        question = "how many circles"
        raw[number] = {
            "messages": [
                {"role": "user", "content": f"{question} in {number} scenes"},
                {"role": "assistant", "content": "two circles" if number == 5 else "three"},
            ]
        }
    for number, answer in enumerate(answers):
        raw[number]["messages"] = [*raw[number]["messages"][:-1], {"role": "assistant", "content": answer}]
    return open_rows(raw)


def teacher() -> LiveTeacher:
    return LiveTeacher(tiny_llava.model())


def processor():
    return copy.deepcopy(tiny_llava.processor())


def write(folder, own_rows=None, loss="sft+hidden+kd", top_k=VOCABULARY, temperature=2.0, **others):
    """A cache, by default of all logits and hidden states, in shards of 4 rows."""
    given = {"batch_size": 3, "rows_per_shard": 4} | others
    wanted = recipe(loss, temperature=temperature)
    return write_cache(folder, teacher(), processor(), own_rows or rows(), wanted, top_k, **given)


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def assert_close(folder, other):
    """Two caches of two processes: the same rows and tokens, and what was said of them but for rounding.

    Another process may round otherwise, by what has run in it before; then logits that tie change places.
    """
    assert sorted(content(folder)) == sorted(content(other))
    for shard in sorted(folder.glob("*.safetensors")):
        one, two = load_file(shard), load_file(other / shard.name)
        assert one.keys() == two.keys()
        for name in ("offsets", "tokens"):
            assert torch.equal(one[name], two[name])
        for name in one.keys() - {"offsets", "tokens", "indices"}:
            torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-5)
        assert (one["indices"] == two["indices"]).float().mean() > 0.9


def refusal(*args, **others):
    with pytest.raises(UserInputError) as caught:
        write(*args, **others)
    return str(caught.value)
