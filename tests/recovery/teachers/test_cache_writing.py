"""The pass that fills a cache: what it stores, what it says, what it refuses."""

from __future__ import annotations

import json
import os
import shutil
from collections import namedtuple

import pytest
import torch
from recovery import teacher_cache
from safetensors import safe_open
from safetensors.torch import load_file

from optimum_mllm_prune import UserInputError
from optimum_mllm_prune.recovery.teachers import cache_writer
from optimum_mllm_prune.recovery.teachers.cache_size import size_per_token


def test_shards_hold_what_the_teacher_says(whole):
    rows, teacher = teacher_cache.rows(), teacher_cache.teacher()
    collate = cache_writer.RowCollator(teacher_cache.processor())
    number = 0
    for name in teacher_cache.SHARDS:
        stored = load_file(whole / name)
        for start, end in zip(stored["offsets"], stored["offsets"][1:], strict=False):
            batch = collate([(number, rows[number])])
            inputs = {k: v for k, v in batch.items() if k not in ("labels", "modality", "row_number")}
            own = teacher.model(**inputs, output_hidden_states=True)
            labels = batch["labels"][0, 1:]
            at = labels != -100
            assert torch.equal(stored["tokens"][start:end].long(), labels[at])
            logits = torch.zeros(end - start, 384).scatter(
                -1, stored["indices"][start:end].long(), stored["values"][start:end]
            )
            assert torch.allclose(logits, own.logits[0, :-1][at], atol=1e-5)
            assert torch.allclose(stored["hidden"][start:end], own.hidden_states[-1][0, :-1][at], atol=1e-5)
            number += 1
    assert number == teacher_cache.ROWS


def test_few_logits_and_the_rest(tmp_path, whole):
    teacher_cache.write(tmp_path / "few", loss="kd", top_k=5, temperature=3.0)
    few, every = (load_file(folder / teacher_cache.SHARDS[0]) for folder in (tmp_path / "few", whole))
    assert set(few) == {"tokens", "values", "indices", "rest", "offsets"}
    assert torch.allclose(few["values"], every["values"][:, :5], atol=1e-5)
    assert torch.allclose(few["rest"], (every["values"][:, 5:] / 3).logsumexp(-1), atol=1e-5)
    assert few["rest"].dtype == torch.float32


def test_hidden_states_alone(tmp_path):
    index = teacher_cache.write(tmp_path / "hidden", loss="sft+hidden")
    assert (index.top_k, index.temperature, index.hidden_states) == (0, None, True)
    assert set(load_file(tmp_path / "hidden" / teacher_cache.SHARDS[0])) == {"tokens", "hidden", "offsets"}


def test_the_number_format_is_the_teachers(tmp_path):
    teacher = teacher_cache.teacher()
    teacher.model.to(torch.bfloat16)
    given = (teacher, teacher_cache.processor(), teacher_cache.rows(), teacher_cache.recipe())
    assert cache_writer.write_cache(tmp_path / "half", *given).dtype == "bfloat16"
    stored = load_file(tmp_path / "half" / teacher_cache.SHARDS[0])
    assert (stored["values"].dtype, stored["hidden"].dtype) == (torch.bfloat16, torch.bfloat16)


def test_index_says_all_and_no_more(whole):
    found = json.loads((whole / "index.json").read_text())
    assert found["format_version"] == 1
    assert list(found["shards"]) == teacher_cache.SHARDS
    assert sorted(found["fingerprints"]) == ["processor", "rows", "teacher_config", "teacher_weights"]
    assert sorted(os.listdir(whole)) == ["index.json", *teacher_cache.SHARDS]
    with safe_open(whole / teacher_cache.SHARDS[0], framework="pt") as stored:
        assert not stored.metadata()
    for path in whole.iterdir():
        assert str(whole.parent).encode() not in path.read_bytes()


def test_rows_a_batch_do_not_matter(whole, tmp_path):
    teacher_cache.write(tmp_path / "one", batch_size=1)
    for name in teacher_cache.SHARDS:
        mine, theirs = load_file(tmp_path / "one" / name), load_file(whole / name)
        assert torch.equal(mine["tokens"], theirs["tokens"])
        assert torch.allclose(mine["hidden"], theirs["hidden"], atol=1e-5)


def test_size_is_told_before_the_pass_and_comes_true(tmp_path, passes):
    told = []
    index = teacher_cache.write(tmp_path / "cache", report=lambda line: told.append((line, list(passes))))
    tokens = sum(len(load_file(tmp_path / "cache" / name)["tokens"]) for name in teacher_cache.SHARDS)
    a_token = 384 * 8 + 4 + 160 * 4 + 4
    assert size_per_token(384, 160, torch.float32) == a_token
    line = (
        f"The teacher cache takes {a_token:,} bytes an answer token, about {a_token * tokens / 1e6:.2f} MB in all "
        f"(10 rows of about {tokens / 10:.1f} answer tokens)."
    )
    assert told == [(line, [])]
    # Headers and offsets.
    assert 0 < sum(shard.bytes for shard in index.shards.values()) - a_token * tokens < 4000


def test_size_per_token():
    assert size_per_token(0, 0, torch.bfloat16) == 4
    assert size_per_token(64, 0, torch.bfloat16) == 64 * 6 + 4 + 4
    assert size_per_token(0, 4096, torch.bfloat16) == 8192 + 4


def test_too_little_room_is_refused_up_front(tmp_path, monkeypatch, passes):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 10**5))
    folder = tmp_path / "cache"
    assert teacher_cache.refusal(folder) == (
        f"the disk of '{folder}' has 0.10 MB left and the teacher cache needs 0.24 MB: choose a smaller top_k, a loss "
        "without 'hidden', fewer rows or another folder."
    )
    assert not folder.exists()
    assert not passes


def other_weights():
    model = teacher_cache.tiny_llava.model()
    with torch.no_grad():
        model.get_output_embeddings().weight += 1
    return cache_writer.LiveTeacher(model)


def test_a_folder_of_another_cache_is_refused(cache, monkeypatch):
    def told(what):
        return f"'{cache}' holds a cache {what}: name another folder, or delete that one."

    before = teacher_cache.content(cache)
    assert teacher_cache.refusal(cache, top_k=16) == told("with top_k 384, not 16")
    assert teacher_cache.refusal(cache, temperature=1.0) == told("with temperature 2.0, not 1.0")
    assert teacher_cache.refusal(cache, rows_per_shard=5) == told("with rows_per_shard 4, not 5")
    assert teacher_cache.refusal(cache, loss="kd") == told("with hidden_states True, not False")
    others = teacher_cache.rows(answers=("nothing",))
    assert teacher_cache.refusal(cache, others) == told("of other rows, or of the same in another order")
    monkeypatch.setattr(teacher_cache, "teacher", other_weights)
    assert teacher_cache.refusal(cache) == told("of a teacher with other weights")
    assert teacher_cache.content(cache) == before


def test_a_folder_of_other_things_is_refused(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    folder = tmp_path / "notes"
    assert teacher_cache.refusal(folder) == f"'{folder}' holds other things than a teacher cache: name another folder."
    file = folder / "a.txt"
    assert teacher_cache.refusal(file) == f"'{file}' is a file: name a folder for the output."


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format_version": 2}', '{"format_version": 1, "shards": {}}'])
def test_an_index_that_cannot_be_read(cache, text):
    (cache / "index.json").write_text(text)
    assert (
        teacher_cache.refusal(cache)
        == f"index.json in '{cache}' cannot be read: delete the folder and write the cache anew."
    )


def test_no_file_outside_the_cache_is_touched(cache, tmp_path):
    found = json.loads((cache / "index.json").read_text())
    found["shards"]["../mine"] = {"bytes": 3, "sha256": ""}
    (cache / "index.json").write_text(json.dumps(found))
    (tmp_path / "mine").write_text("mine")
    assert (
        teacher_cache.refusal(cache)
        == f"index.json in '{cache}' cannot be read: delete the folder and write the cache anew."
    )
    assert (tmp_path / "mine").exists()


def test_what_no_cache_can_hold_is_refused(tmp_path):
    folder, rows = tmp_path / "cache", teacher_cache.rows()
    given = (folder, teacher_cache.teacher(), teacher_cache.processor(), rows)

    def told(loss, top_k=64, **others):
        with pytest.raises(UserInputError) as caught:
            cache_writer.write_cache(*given, teacher_cache.recipe(loss, **others), top_k)
        return str(caught.value)

    assert told("sft") == "this loss looks at no teacher: leave out the cache."
    assert told("kd", 0) == "top_k and rows_per_shard must be at least 1, got 0 and 256."
    assert told("layers=1") == (
        "a cache holds no intermediate layers: leave out the loss term 'layers', or the cache."
    )
    assert told("kd", logits_tokens="text") == (
        "a cache holds answer tokens alone: set logits_tokens to 'answer', not 'text'."
    )
    assert not folder.exists()


def test_a_teacher_that_overflows(tmp_path, monkeypatch):
    teacher = teacher_cache.teacher()
    with torch.no_grad():
        teacher.model.get_input_embeddings().weight[:] = float("nan")
    monkeypatch.setattr(teacher_cache, "teacher", lambda: teacher)
    assert teacher_cache.refusal(tmp_path / "cache") == (
        "the teacher's hidden states overflow: load it in bfloat16 or float32."
    )
