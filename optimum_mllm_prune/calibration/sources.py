"""Where rows come from: a dataset in memory, a local file or folder, or the Hub."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from ..errors import UserInputError, first_line
from ..quiet import quiet


DatasetLike = str | Path | Dataset | DatasetDict | IterableDataset | IterableDatasetDict | Sequence[Mapping[str, Any]]

_DATA_SUFFIXES = (".json", ".jsonl", ".parquet")

_INFO_FILES = ("dataset_info.json", "dataset_infos.json")


@dataclass(frozen=True)
class Source:
    """An opened dataset, nothing decoded yet.

    `rows` is a `datasets` object or a list of dicts or of JSON lines; `folder` is where relative image paths start.
    """

    rows: Any
    folder: Path | None = None


def open_source(
    dataset: DatasetLike,
    split: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | None = None,
) -> Source:
    """Open a dataset and choose its split (`"train"` unless named, else the first).

    Raises:
        UserInputError: no such file, folder or Hub dataset; no such split; the Hub cannot be reached.
    """
    if not isinstance(dataset, str | Path):
        return Source(_choose_split(dataset, split))
    with quiet():
        return _open_named(dataset, split, revision, token, cache_dir)


def _open_named(
    dataset: str | Path, split: str | None, revision: str | None, token: str | bool | None, cache_dir: str | None
) -> Source:
    path = Path(dataset).expanduser()
    if path.is_dir():
        return _open_folder(path, split, cache_dir)
    if path.is_file():
        return Source(_choose_split({_split_of(path): _read_file(path, cache_dir)}, split), path.parent)
    if _looks_like_path(str(dataset)):
        raise UserInputError(f"Dataset {str(dataset)!r} does not exist; give a file, a folder or a Hub dataset id.")
    return Source(_choose_split(_open_hub(str(dataset), revision, token, cache_dir), split))


def _choose_split(found: Any, split: str | None) -> Any:
    """One split of several; what has no splits is returned as it is, unless another than its own is asked for."""
    if not isinstance(found, dict):
        if split not in (None, str(getattr(found, "split", None))):
            raise UserInputError(f"The dataset has no splits, so no split {split!r}; leave the split out.")
        return found
    if split is None:
        return found["train"] if "train" in found else next(iter(found.values()))
    if split not in found:
        names = ", ".join(repr(name) for name in found)
        raise UserInputError(f"The dataset has no split {split!r}; choose one of: {names}.")
    return found[split]


def _open_folder(folder: Path, split: str | None, cache_dir: str | None) -> Source:
    """A `save_to_disk` folder, data files beside images, or an imagefolder."""
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        return Source(_choose_split(_open_saved(folder), split), folder)
    files = _data_files(folder)
    if not files:
        return Source(_choose_split(_open_imagefolder(folder, cache_dir), split), folder)
    by_split: dict[str, list[Path]] = {}
    for path in files:
        by_split.setdefault(_split_of(path), []).append(path)
    chosen = _choose_split(by_split, split)
    return Source(_read_files(chosen, cache_dir), chosen[0].parent)


def _open_saved(folder: Path) -> Dataset | DatasetDict:
    try:
        return datasets.load_from_disk(str(folder))
    except (datasets.exceptions.DatasetsError, OSError, ValueError, LookupError, TypeError, AttributeError):
        raise UserInputError(
            f"Dataset folder {folder.name!r} is damaged or incomplete; write it again with save_to_disk."
        ) from None


def _data_files(folder: Path) -> list[Path]:
    """Files of rows; none in an imagefolder, whose metadata file is read together with its images."""
    files = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.suffix in _DATA_SUFFIXES]
    if any(path.stem == "metadata" for path in files):
        return []
    hidden = [path for path in files if path.name in _INFO_FILES or any(part[0] == "." for part in path.parts)]
    return [folder / path for path in files if path not in hidden]


def _open_imagefolder(folder: Path, cache_dir: str | None) -> DatasetDict:
    try:
        return datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=cache_dir)
    except (datasets.exceptions.DatasetsError, OSError, ValueError):
        raise UserInputError(
            f"Folder {folder.name!r} holds no dataset; it needs json, jsonl or parquet files, or images with a "
            "metadata file, or what save_to_disk wrote."
        ) from None


def _split_of(path: Path) -> str:
    """`train-00000-of-00001.parquet` belongs to `train`; a file whose name says nothing does too."""
    names = {"val": "validation", "dev": "validation", "test": "test"}
    return next((names[word] for word in names if path.stem.lower().startswith(word)), "train")


def _read_files(paths: list[Path], cache_dir: str | None) -> Any:
    """All files of one split, which are of one kind."""
    if len(paths) == 1:
        return _read_file(paths[0], cache_dir)
    kinds = {path.suffix for path in paths}
    if len(kinds) > 1 or len({path.parent for path in paths}) > 1:
        names = ", ".join(repr(path.name) for path in paths[:4])
        raise UserInputError(f"The dataset folder holds several data files ({names}); name one file instead.")
    if kinds == {".parquet"}:
        return _read_parquet(paths, cache_dir)
    return [row for path in paths for row in _read_json(path)]


def _read_file(path: Path, cache_dir: str | None) -> Any:
    if path.suffix == ".parquet":
        return _read_parquet([path], cache_dir)
    if path.suffix in (".json", ".jsonl"):
        return _read_json(path)
    raise UserInputError(f"Dataset file {path.name!r} is of no known kind; give a json, jsonl or parquet file.")


def _read_parquet(paths: list[Path], cache_dir: str | None) -> Dataset:
    try:
        return Dataset.from_parquet([str(path) for path in paths], cache_dir=cache_dir)
    except (datasets.exceptions.DatasetsError, OSError, ValueError):
        raise UserInputError(
            f"Dataset file {paths[0].name!r} is not a readable parquet file; write it again."
        ) from None


def _read_json(path: Path) -> list[Any]:
    """A JSON array's items, or the lines of a JSON-lines file; lines are parsed when they are drawn."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserInputError(f"Dataset file {path.name!r} is not UTF-8 text; save it as UTF-8.") from None
    except OSError as error:
        raise UserInputError(
            f"Dataset file {path.name!r} cannot be read ({error.strerror}); change its rights or give another."
        ) from None
    if not text.lstrip().startswith("["):
        return [line for line in text.split("\n") if line.strip()]
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserInputError(f"Dataset file {path.name!r} is not valid JSON: {error}.") from None


def _looks_like_path(name: str) -> bool:
    """A Hub id is `name` or `owner/name`, and `owner/name:configuration` for one of several configurations."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith(_DATA_SUFFIXES)


def _open_hub(
    name: str, revision: str | None, token: str | bool | None, cache_dir: str | None
) -> dict[str, IterableDataset]:
    """Stream a Hub dataset, so that only what is drawn is fetched."""
    repo_id, _, configuration = name.partition(":")
    try:
        return datasets.load_dataset(
            repo_id, configuration or None, streaming=True, revision=revision, token=token, cache_dir=cache_dir
        )
    except datasets.exceptions.DatasetNotFoundError as error:
        advice = "ask for access and log in" if "gated" in str(error) else "check the name, or log in if it is private"
        raise UserInputError(f"Dataset {name!r} is not on the Hub or not open to you; {advice}.") from None
    except ConnectionError:
        raise UserInputError(
            f"Dataset {name!r} is no local path, and the Hub cannot be reached; check the network or give a folder."
        ) from None
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise UserInputError(_hub_line(name, error)) from None


def _hub_line(name: str, error: Exception) -> str:
    reason = first_line(error)
    if "Config name is missing" in reason:
        return f"Dataset {name!r} has several configurations; name one as '{name}:CONFIGURATION'."
    return f"Dataset {name!r} cannot be read from the Hub ({reason}); give another or a local folder."
