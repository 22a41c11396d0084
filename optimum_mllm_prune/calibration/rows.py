"""Rows to calibrate, recover and evaluate with: drawn once, decoded when they are used."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset
from PIL import Image

from ..errors import UserInputError
from .row_forms import Row, has_images, normalize_row, require_usable_columns
from .sources import DatasetLike, open_source


# Rows of a stream are shuffled in a window of this many, which are fetched but not decoded.
_SHUFFLE_BUFFER = 1000


class Rows(Sequence[Row]):
    """Drawn rows, normalized and decoded one by one when they are asked for.

    Args:
        raw: a `datasets.Dataset`, or a sequence of dicts or of JSON texts.
        indices: which of them, in which order.
        folder: where relative image paths start.
    """

    def __init__(self, raw: Any, indices: Sequence[int], folder: Path | None = None) -> None:
        self._raw, self._indices, self._folder = _undecoded(raw), list(indices), folder

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, position: int | slice) -> Any:
        if isinstance(position, slice):
            return [self[i] for i in range(*position.indices(len(self)))]
        index = self._indices[position]
        return normalize_row(_raw_row(self._raw, index), index, self._folder)

    def take(self, positions: Sequence[int]) -> "Rows":
        """Some of the rows, in the given order, still undecoded."""
        return Rows(self._raw, [self._indices[position] for position in positions], self._folder)

    def raw(self, position: int) -> Mapping[str, Any]:
        """A row as it came, images still encoded. Raises UserInputError where it is no row."""
        return _raw_row(self._raw, self._indices[position])

    def have_images(self) -> list[bool]:
        """For each row whether it has any image; nothing is decoded."""
        return [has_images(_raw_row(self._raw, index)) for index in self._indices]

    def column(self, name: str) -> list[Any]:
        """One column of all rows as it came. Raises UserInputError where a row has none."""
        values = [_raw_row(self._raw, index).get(name) for index in self._indices]
        if any(value is None for value in values):
            raise UserInputError(f"The dataset has no column {name!r} in every row; name one that it has.")
        return values


def open_rows(
    dataset: DatasetLike,
    split: str | None = None,
    num_samples: int | None = None,
    seed: int = 42,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | None = None,
) -> Rows:
    """Open a dataset and draw rows from it; the same arguments give the same rows in the same order.

    Args:
        dataset: a folder written by `save_to_disk`, an imagefolder, a folder or file of json, jsonl or parquet (image
            paths are relative to the file), a Hub id (`owner/name`, or `owner/name:configuration`), a `datasets`
            object, or a list of dicts.
        split: `"train"` unless named, else the first.
        num_samples: rows to draw without replacement; `None` takes all, in their own order. Fewer samples of the same
            seed are the first of more, except from a stream.
        seed: of the draw.
        revision: of a Hub dataset.
        token: for a private or gated Hub dataset.
        cache_dir: where Hub and parquet data is kept.

    Raises:
        UserInputError: unknown dataset or split, no usable column, no rows. What is wrong with a single row is raised
            when it is read.
    """
    source = open_source(dataset, split, revision, token, cache_dir)
    raw = source.rows
    if isinstance(raw, IterableDataset):
        raw = _take(raw, num_samples, seed)
        indices: Sequence[int] = range(len(raw))
    else:
        indices = draw(len(raw), num_samples, seed)
    if len(indices) == 0:
        raise UserInputError("The dataset has no rows; choose another dataset or split.")
    rows = Rows(raw, indices, source.folder)
    require_usable_columns(list(_raw_row(raw, indices[0])))
    return rows


def as_rows(dataset: DatasetLike | Rows) -> Rows:
    """All rows of anything that `open_rows` takes, or the rows themselves. Raises UserInputError as it does."""
    return dataset if isinstance(dataset, Rows) else open_rows(dataset)


def load_rows(
    dataset: DatasetLike,
    split: str | None = None,
    num_samples: int | None = None,
    seed: int = 42,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | None = None,
) -> list[Row]:
    """The rows of `open_rows`, all decoded and checked; only drawn rows are. Arguments and errors as there."""
    return list(open_rows(dataset, split, num_samples, seed, revision=revision, token=token, cache_dir=cache_dir))


def draw(size: int, num_samples: int | None, seed: int) -> list[int]:
    """`num_samples` of `size` indices without replacement, in drawn order; all of them if there are fewer."""
    if num_samples is None:
        return list(range(size))
    return np.random.default_rng(seed).permutation(size)[:num_samples].tolist()


def synthetic_row(seed: int = 0) -> Row:
    """A row of noise, 64 x 48 pixels, with a question and a short answer: enough to run a model on."""
    pixels = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    question, answer = "Describe the image.", "It is colourful noise."
    return normalize_row({"image": Image.fromarray(pixels), "question": question, "answer": answer})


def _take(stream: IterableDataset, num_samples: int | None, seed: int) -> list[Mapping[str, Any]]:
    """Rows of a stream, images still encoded."""
    stream = stream.decode(False)
    if num_samples is None:
        return list(stream)
    return list(stream.shuffle(seed=seed, buffer_size=_SHUFFLE_BUFFER).take(num_samples))


def _undecoded(raw: Any) -> Any:
    """Arrow rows keep images as bytes, so that a broken one is reported by us; a user's transform is respected."""
    if isinstance(raw, Dataset) and raw.format["type"] != "custom":
        return raw.with_format("arrow")
    return raw


def _raw_row(raw: Any, index: int) -> Mapping[str, Any]:
    row = raw[index]
    if isinstance(raw, Dataset) and raw.format["type"] == "arrow":
        return row.to_pylist()[0]
    if isinstance(row, str | bytes):
        row = _parse(row, index)
    if not isinstance(row, Mapping):
        raise UserInputError(f"Row {index} is no JSON object; write each row as one with named columns.")
    return row


def _parse(line: str, index: int) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise UserInputError(f"Row {index} is not valid JSON ({error}); mend the line.") from None
