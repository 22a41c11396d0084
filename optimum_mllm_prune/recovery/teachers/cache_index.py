"""index.json of a teacher cache: what was stored, of what, and in which shards."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ...checkpoint.atomic import write_whole
from ...errors import UserInputError
from ..recipe import Recipe


INDEX_NAME = "index.json"
FORMAT_VERSION = 1

# What differs, in words, the most telling first.
_WORDS = {
    "teacher_config": "of another teacher",
    "teacher_weights": "of a teacher with other weights",
    "rows": "of other rows, or of the same in another order",
    "processor": "made with another processor or chat template",
}


@dataclass(frozen=True)
class Shard:
    """One file of the cache.

    Attributes:
        bytes: its size.
        sha256: of its content.
    """

    bytes: int
    sha256: str


@dataclass(frozen=True)
class CacheIndex:
    """What a cache holds. No path, no name and no token is part of it.

    Attributes:
        top_k: logits stored of each answer token; 0 for none.
        temperature: tau at which the rest was summed up; None where no logits are stored.
        hidden_states: whether final hidden states are stored.
        rows: number of rows.
        rows_per_shard: rows of each shard; the last may have fewer.
        vocabulary: the teacher's.
        hidden_size: the teacher's.
        dtype: the teacher's number format, as torch calls it.
        fingerprints: "teacher_config", "teacher_weights", "rows" and "processor" to sha256.
        shards: by file name, as far as they are complete.
        quantization: "8bit" or "4bit" where the teacher was held in so many bits; None where it was not.
    """

    top_k: int
    temperature: float | None
    hidden_states: bool
    rows: int
    rows_per_shard: int
    vocabulary: int
    hidden_size: int
    dtype: str
    fingerprints: Mapping[str, str]
    shards: Mapping[str, Shard] = field(default_factory=dict)
    quantization: str | None = None

    @property
    def shard_names(self) -> list[str]:
        """File names of all shards of a complete cache."""
        return [f"shard-{number:05d}.safetensors" for number in range(-(-self.rows // self.rows_per_shard))]

    def rows_of(self, number: int) -> range:
        """Rows of a shard."""
        return range(number * self.rows_per_shard, min((number + 1) * self.rows_per_shard, self.rows))

    def missing(self, folder: Path) -> list[str]:
        """Shards that are not named, or of whose size no file lies there."""
        return [name for name in self.shard_names if not self._has(folder, name)]

    def difference(self, other: "CacheIndex") -> str | None:
        """How what is stored differs from what another index says, in words; None where it does not."""
        for name in ("top_k", "temperature", "hidden_states", "rows_per_shard", "dtype", "quantization"):
            if getattr(self, name) != getattr(other, name):
                return f"with {name} {getattr(self, name)}, not {getattr(other, name)}"
        return self.other_fingerprint(other.fingerprints)

    def other_fingerprint(self, given: Mapping[str, str]) -> str | None:
        """Of which other thing this is, in words; None where all given fingerprints are those stored."""
        others = (words for key, words in _WORDS.items() if key in given and given[key] != self.fingerprints[key])
        return next(others, None)

    def with_shards(self, shards: Mapping[str, Shard]) -> "CacheIndex":
        """The same with other shards."""
        return replace(self, shards=shards)

    def save(self, folder: Path) -> None:
        """Write index.json, whole or not at all."""
        text = json.dumps({"format_version": FORMAT_VERSION, **asdict(self)}, indent=2)
        write_whole(folder / INDEX_NAME, f"{text}\n".encode())

    @classmethod
    def load(cls, folder: Path) -> "CacheIndex":
        """Read index.json. Raises UserInputError where there is none, or none of this format."""
        try:
            return cls._from_dict(json.loads((folder / INDEX_NAME).read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise UserInputError(f"'{folder}' holds no teacher cache: write one first, or name its folder.") from None
        except (OSError, ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError):
            raise UserInputError(
                f"{INDEX_NAME} in '{folder}' cannot be read: delete the folder and write the cache anew."
            ) from None

    @classmethod
    def _from_dict(cls, found: dict[str, Any]) -> "CacheIndex":
        if found.pop("format_version") != FORMAT_VERSION:
            raise ValueError("another format")
        shards = {name: Shard(**entry) for name, entry in found.pop("shards").items()}
        index = cls(**found, shards=shards)
        # Names of files are never taken from what somebody else may have written.
        if index.fingerprints.keys() != _WORDS.keys() or not shards.keys() <= set(index.shard_names):
            raise ValueError("not written by this package")
        return index

    def _has(self, folder: Path, name: str) -> bool:
        path = folder / name
        return name in self.shards and path.is_file() and path.stat().st_size == self.shards[name].bytes


def is_complete(folder: str | Path) -> bool:
    """Whether a cache lies there with all its shards. Raises UserInputError where its index cannot be read."""
    folder = Path(folder)
    return (folder / INDEX_NAME).exists() and not CacheIndex.load(folder).missing(folder)


def require_cacheable(recipe: Recipe) -> None:
    """Raise UserInputError where a recipe asks for what no cache holds."""
    if recipe.weight("layers"):
        raise UserInputError("a cache holds no intermediate layers: leave out the loss term 'layers', or the cache.")
    for term, key in (("logits", "logits_tokens"), ("hidden", "hidden_tokens")):
        tokens = getattr(recipe, key)
        if recipe.weight(term) and tokens != "answer":
            raise UserInputError(f"a cache holds answer tokens alone: set {key} to 'answer', not '{tokens}'.")


def shard_of(path: Path) -> Shard:
    """Size and hash of a file."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    return Shard(path.stat().st_size, digest.hexdigest())
