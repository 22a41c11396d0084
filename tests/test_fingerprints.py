"""Fingerprints: the same for the same thing wherever it lies, another for another."""

from __future__ import annotations

import shutil

import torch
from checkpoint import tiny_llava
from datasets import Dataset, Image
from recovery import teacher_cache

from optimum_mllm_prune.calibration.rows import open_rows
from optimum_mllm_prune.fingerprints import (
    config_fingerprint,
    model_fingerprint,
    processor_fingerprint,
    rows_fingerprint,
)
from optimum_mllm_prune.recovery.batching import RowCollator


def test_rows_do_not_depend_on_where_they_lie(tmp_path):
    tiny_llava.rows().select(range(4)).save_to_disk(str(tmp_path / "one"))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    one, two = (open_rows(str(tmp_path / name)) for name in ("one", "two"))
    assert rows_fingerprint(one) == rows_fingerprint(two)
    assert rows_fingerprint(one) != rows_fingerprint(one.take([0, 1, 2, 2]))


def test_image_files_go_by_their_names_and_pixels_in_memory_by_value(tmp_path):
    def of_file(name):
        tmp_path.joinpath(name).parent.mkdir(exist_ok=True)
        tiny_llava.rows()[0]["images"][0].save(tmp_path / name)
        texts = {"question": ["a"], "answer": ["b"]}
        data = Dataset.from_dict({"image": [str(tmp_path / name)], **texts}).cast_column("image", Image())
        return rows_fingerprint(open_rows(data))

    assert of_file("here/1.png") == of_file("there/1.png") != of_file("there/2.png")
    first, second = (tiny_llava.rows()[i]["images"][0] for i in range(2))
    of_pixels = [
        rows_fingerprint(open_rows([{"image": image, "question": "a", "answer": "b"}]))
        for image in (first, first.copy(), second)
    ]
    assert of_pixels[0] == of_pixels[1] != of_pixels[2]


def test_rows_are_not_decoded():
    rows = open_rows([{"image": b"no image", "question": "a", "answer": "b"}])
    assert len(rows_fingerprint(rows)) == 64


def test_pieces_do_not_run_together():
    first, second = (
        [{"question": "a", "answer": "b", "notes": notes}] for notes in (["astr b", "c"], ["a", "bstr c"])
    )
    assert rows_fingerprint(open_rows(first)) != rows_fingerprint(open_rows(second))


def test_a_model_is_the_same_after_a_reload_and_in_a_wider_format(tmp_path):
    model = tiny_llava.model().to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, dtype=torch.float32)
    assert model_fingerprint(again) == model_fingerprint(model)
    assert config_fingerprint(again.config) == config_fingerprint(model.config)


def test_every_parameter_counts():
    model = tiny_llava.model()
    seen = {model_fingerprint(model)}
    parameters = list(model.parameters())
    for parameter in parameters:
        with torch.no_grad():
            parameter += 0.5
        seen.add(model_fingerprint(model))
    assert len(seen) == len(parameters) + 1


def test_a_processor_is_the_same_after_use():
    processor = teacher_cache.processor()
    before = processor_fingerprint(processor)
    RowCollator(processor)([(0, teacher_cache.rows()[0])])
    assert processor_fingerprint(processor) == before
