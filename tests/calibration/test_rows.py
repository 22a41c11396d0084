import base64
import json
import logging
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from datasets import Image as ImageFeature
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from optimum_mllm_prune.calibration.rows import draw, load_rows, open_rows, synthetic_row
from optimum_mllm_prune.errors import UserInputError


def png(colour=0):
    buffer = BytesIO()
    Image.new("RGB", (8, 6), (colour, 0, 0)).save(buffer, "png")
    return buffer.getvalue()


def records(count, start=0):
    """Rows whose image, question and answer all say their number."""
    numbers = range(start, start + count)
    return [{"image": {"bytes": png(i), "path": None}, "question": f"{i}?", "answer": str(i)} for i in numbers]


def arrow(count, start=0):
    return Dataset.from_list(records(count, start)).cast_column("image", ImageFeature())


def numbers(rows):
    """The rows' numbers, after checking that image and answer belong together."""
    found = [int(row["messages"][1]["content"][0]["text"]) for row in rows]
    assert found == [row["images"][0].getpixel((0, 0))[0] for row in rows]
    return found


def write_json_rows(folder, count=4, name="data.jsonl"):
    (folder / "images").mkdir(parents=True)
    rows = [{"image": f"images/{i}.png", "question": f"{i}?", "answer": str(i)} for i in range(count)]
    for i in range(count):
        (folder / "images" / f"{i}.png").write_bytes(png(i))
    lines = [json.dumps(row) for row in rows]
    (folder / name).write_text("\n".join(lines) + "\n" if name.endswith("l") else json.dumps(rows))
    return folder / name


def error_line(*args, **kwargs):
    with pytest.raises(UserInputError) as error:
        load_rows(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_saved_datasets_default_to_train_then_to_the_first_split(tmp_path):
    arrow(3).save_to_disk(tmp_path / "plain")
    DatasetDict({"test": arrow(2, 10), "train": arrow(2)}).save_to_disk(tmp_path / "both")
    DatasetDict({"dev": arrow(1, 5), "test": arrow(1, 6)}).save_to_disk(tmp_path / "other")
    assert numbers(load_rows(tmp_path / "plain")) == [0, 1, 2]
    assert numbers(load_rows(str(tmp_path / "both"))) == [0, 1]
    assert numbers(load_rows(tmp_path / "both", split="test")) == [10, 11]
    assert numbers(load_rows(tmp_path / "other")) == [5]
    line = error_line(tmp_path / "both", split="val")
    assert line == "The dataset has no split 'val'; choose one of: 'test', 'train'."
    assert error_line(tmp_path / "plain", split="val").startswith("The dataset has no splits, so no split 'val'")
    assert error_line(records(1), split="val").startswith("The dataset has no splits, so no split 'val'")


@pytest.mark.parametrize("name", ["data.jsonl", "data.json"])
def test_json_image_paths_are_relative_to_the_file(tmp_path, name):
    file = write_json_rows(tmp_path / "set", name=name)
    assert numbers(load_rows(file)) == [0, 1, 2, 3]
    assert numbers(load_rows(tmp_path / "set")) == [0, 1, 2, 3]


def test_json_lines_in_a_json_file_and_splits_by_file_name(tmp_path):
    file = write_json_rows(tmp_path, count=4)
    lines = file.read_text().splitlines()
    file.unlink()
    (tmp_path / "train.json").write_text("\n".join(lines[:3]))
    (tmp_path / "val.jsonl").write_text(lines[3])
    assert numbers(load_rows(tmp_path)) == [0, 1, 2]
    assert numbers(load_rows(tmp_path, split="validation")) == [3]


def test_images_embedded_in_json(tmp_path):
    encoded = base64.b64encode(png(7)).decode()
    row = {"question": "7?", "answer": "7"}
    rows = [{**row, "image": {"bytes": encoded}}, {**row, "image": f"data:image/png;base64,{encoded}"}]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    assert numbers(load_rows(tmp_path / "data.json")) == [7, 7]


def test_images_by_url(tmp_path):
    (tmp_path / "7.png").write_bytes(png(7))
    row = {"image": {"bytes": None, "path": f"file://{tmp_path}/7.png"}, "question": "7?", "answer": "7"}
    assert numbers(load_rows([row])) == [7]


def test_parquet_file_and_folder(tmp_path):
    arrow(3).to_parquet(tmp_path / "train-00000-of-00001.parquet")
    cache = {"cache_dir": str(tmp_path / "cache")}
    assert numbers(load_rows(tmp_path / "train-00000-of-00001.parquet", **cache)) == [0, 1, 2]
    folder = tmp_path / "set"
    folder.mkdir()
    arrow(2).to_parquet(folder / "train-00000-of-00002.parquet")
    arrow(2, 2).to_parquet(folder / "train-00001-of-00002.parquet")
    assert numbers(load_rows(folder, **cache)) == [0, 1, 2, 3]


def test_imagefolder_with_metadata(tmp_path):
    folder = tmp_path / "set" / "train"
    folder.mkdir(parents=True)
    for i in range(2):
        (folder / f"{i}.png").write_bytes(png(i))
    lines = [json.dumps({"file_name": f"{i}.png", "question": f"{i}?", "answer": str(i)}) for i in range(2)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    assert sorted(numbers(load_rows(tmp_path / "set", cache_dir=str(tmp_path / "cache")))) == [0, 1]


def test_nested_arrow_messages_with_filled_up_keys():
    messages = [
        {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "4?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "4"}]},
    ]
    dataset = Dataset.from_list([{"images": [{"bytes": png(4), "path": None}], "messages": messages}])
    dataset = dataset.cast_column("images", datasets.List(ImageFeature()))
    assert numbers(load_rows(dataset)) == [4]


def test_only_drawn_rows_are_decoded_and_lazily(tmp_path):
    file = write_json_rows(tmp_path, count=6)
    drawn = draw(6, 2, seed=42)
    for i in set(range(6)) - {drawn[0]}:
        (tmp_path / "images" / f"{i}.png").write_bytes(b"broken")
    rows = open_rows(file, num_samples=2)
    assert numbers([rows[0]]) == [drawn[0]]
    with pytest.raises(UserInputError, match=f"Row {drawn[1]}: '{drawn[1]}.png' cannot be read"):
        rows[1]


def test_a_stream_is_shuffled_and_cut(monkeypatch):
    calls = []

    def load_dataset(name, configuration, **options):
        calls.append((name, configuration, options["streaming"]))
        return datasets.IterableDatasetDict({"train": arrow(20).to_iterable_dataset()})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = load_rows("someone/pictures:small", num_samples=5)
    assert calls == [("someone/pictures", "small", True)]
    assert len(set(numbers(rows))) == 5 and numbers(rows) == numbers(load_rows("someone/pictures", num_samples=5))


@pytest.mark.parametrize(
    ("raised", "line"),
    [
        (
            datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' doesn't exist on the Hub."),
            "Dataset 'a/b' is not on the Hub or not open to you; check the name, or log in if it is private.",
        ),
        (
            datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' is a gated dataset on the Hub."),
            "Dataset 'a/b' is not on the Hub or not open to you; ask for access and log in.",
        ),
        (
            ConnectionError("Couldn't reach 'a/b' on the Hub"),
            "Dataset 'a/b' is no local path, and the Hub cannot be reached; check the network or give a folder.",
        ),
        (
            ValueError("Config name is missing.\nPlease pick one among the available configs: ['x', 'y']"),
            "Dataset 'a/b' has several configurations; name one as 'a/b:CONFIGURATION'.",
        ),
        (
            RuntimeError("Dataset scripts are no longer supported, but found b.py"),
            "Dataset 'a/b' cannot be read from the Hub (Dataset scripts are no longer supported, but found b.py); "
            "give another or a local folder.",
        ),
    ],
)
def test_hub_errors(monkeypatch, raised, line):
    def refuse(*args, **kwargs):
        raise raised

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    assert error_line("a/b") == line


def test_errors_of_files_and_folders(tmp_path):
    line = error_line("./nowhere.jsonl")
    assert line == "Dataset './nowhere.jsonl' does not exist; give a file, a folder or a Hub dataset id."
    (tmp_path / "notes.txt").write_text("hello")
    assert error_line(tmp_path / "notes.txt").startswith("Dataset file 'notes.txt' is of no known kind")
    (tmp_path / "bad.json").write_text("[{]")
    assert error_line(tmp_path / "bad.json").startswith("Dataset file 'bad.json' is not valid JSON")
    (tmp_path / "bad.jsonl").write_text('{"question": \n')
    assert error_line(tmp_path / "bad.jsonl").startswith("Row 0 is not valid JSON")
    (tmp_path / "bad.parquet").write_bytes(b"hello")
    assert error_line(tmp_path / "bad.parquet").startswith("Dataset file 'bad.parquet' is not a readable parquet")
    (tmp_path / "empty").mkdir()
    assert error_line(tmp_path / "empty").startswith("Folder 'empty' holds no dataset")


def test_errors_of_rows(tmp_path):
    assert error_line([]) == "The dataset has no rows; choose another dataset or split."
    assert error_line(["a row"]).startswith("Row 0 is not valid JSON")
    assert error_line([5]) == "Row 0 is no JSON object; write each row as one with named columns."
    assert error_line([{"text": "a"}]).startswith("The dataset has no usable column (found: 'text'); rows need")
    file = write_json_rows(tmp_path, count=2)
    (tmp_path / "images" / "1.png").write_bytes(b"broken")
    assert error_line(file) == "Row 1: '1.png' cannot be read as an image; mend the file or take the row out."
    (tmp_path / "images" / "1.png").unlink()
    line = "Row 1: image file '1.png' does not exist; image paths are relative to the dataset file."
    assert error_line(file) == line


@given(size=st.integers(0, 200), num_samples=st.integers(0, 250), seed=st.integers(0, 2**32))
def test_a_draw_is_repeatable_without_replacement_and_grows(size, num_samples, seed):
    drawn = draw(size, num_samples, seed)
    assert drawn == draw(size, num_samples, seed) and len(drawn) == min(size, num_samples)
    assert len(set(drawn)) == len(drawn) and set(drawn) <= set(range(size))
    assert draw(size, num_samples // 2, seed) == drawn[: num_samples // 2]


def test_rows_are_the_same_from_every_source(tmp_path):
    arrow(9).save_to_disk(tmp_path / "saved")
    expected = draw(9, 4, seed=7)
    for dataset in (arrow(9), records(9), tmp_path / "saved", write_json_rows(tmp_path / "json", 9)):
        assert numbers(load_rows(dataset, num_samples=4, seed=7)) == expected


def test_synthetic_row_is_noise_of_its_seed():
    first, second = synthetic_row(), synthetic_row(1)
    assert first["images"][0].size == (64, 48)
    assert np.array_equal(first["images"][0], synthetic_row()["images"][0])
    assert not np.array_equal(first["images"][0], second["images"][0])


class TestDamaged:
    """Files that end too early or say nothing that can be read."""

    @pytest.fixture
    def saved(self, tmp_path):
        arrow(20).save_to_disk(tmp_path / "rows")
        return tmp_path / "rows"

    DAMAGED = "Dataset folder 'rows' is damaged or incomplete; write it again with save_to_disk."

    @pytest.mark.parametrize("kept", [10, 100, 1000, -200])
    def test_arrow_cut_short(self, saved, kept):
        file = next(saved.glob("*.arrow"))
        file.write_bytes(file.read_bytes()[:kept])
        assert error_line(saved) == self.DAMAGED

    def test_arrow_gone(self, saved):
        next(saved.glob("*.arrow")).unlink()
        assert error_line(saved) == self.DAMAGED

    @pytest.mark.parametrize("text", ["{", "[]", "{}", "3", "null", '{"_data_files": 3}', '{"_data_files": [{}]}'])
    def test_state(self, saved, text):
        (saved / "state.json").write_text(text)
        assert error_line(saved) == self.DAMAGED

    @pytest.mark.parametrize("text", ["{", "[]", '{"splits": ["train"]}', '{"splits": 3}'])
    def test_splits(self, tmp_path, text):
        (tmp_path / "rows").mkdir()
        (tmp_path / "rows" / "dataset_dict.json").write_text(text)
        assert error_line(tmp_path / "rows") == self.DAMAGED

    @pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
    def test_another_encoding(self, tmp_path, name):
        text = json.dumps({"question": "Où?", "answer": "Là."}, ensure_ascii=False)
        (tmp_path / name).write_bytes(text.encode("latin-1"))
        assert error_line(tmp_path / name) == f"Dataset file '{name}' is not UTF-8 text; save it as UTF-8."

    def test_no_right_to_read(self, tmp_path, monkeypatch):
        # Tests may run as root, who may read anything.
        def refuse(self, **_):
            raise PermissionError(13, "Permission denied", str(self))

        (tmp_path / "rows.jsonl").write_text("{}")
        monkeypatch.setattr(Path, "read_text", refuse)
        assert error_line(tmp_path / "rows.jsonl") == (
            "Dataset file 'rows.jsonl' cannot be read (Permission denied); change its rights or give another."
        )

    def test_a_corrupt_parquet_file_says_no_more_than_its_line(self, tmp_path, caplog):
        (tmp_path / "rows.parquet").write_bytes(b"words" * 100)
        caplog.set_level(logging.WARNING)
        logging.getLogger("datasets").propagate = True
        try:
            line = error_line(tmp_path / "rows.parquet", cache_dir=str(tmp_path / "cache"))
        finally:
            logging.getLogger("datasets").propagate = False
        assert line == "Dataset file 'rows.parquet' is not a readable parquet file; write it again."
        assert caplog.text == ""
