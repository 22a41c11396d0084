"""A teacher that is not in memory: what it said of the training rows, read from a cache."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin

from ...calibration.rows import Rows
from ...errors import UserInputError
from ...fingerprints import config_fingerprint, model_fingerprint, processor_fingerprint, rows_fingerprint
from ..recipe import Recipe
from ..tokens import answer_tokens, positions
from .cache_index import CacheIndex, require_cacheable, shard_of
from .guidance import StoredGuidance
from .top_logits import top_log_probabilities


# Rows come in random order, so that almost every one is of another shard. An open one costs addresses, not memory.
_OPEN_SHARDS = 64

# What each term of the loss reads.
_COLUMNS = {"logits": ("values", "indices", "rest"), "hidden": ("hidden",)}


class CachedTeacher:
    """What the unpruned model said of the training rows, for a `RecoveryTrainer` without it.

    Args:
        folder: of a complete cache, see `cache_writer.write_cache`.

    Attributes:
        index: what the cache holds.
        hidden_size: the teacher's.

    Raises:
        UserInputError: there is no cache, or it is not complete.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._name = f"the cache '{self.folder}'"
        self.index = CacheIndex.load(self.folder)
        self.hidden_size = self.index.hidden_size
        self._whole: set[int] = set()
        self._shard = lru_cache(_OPEN_SHARDS)(self._open)
        self._require_shards()

    def check(
        self,
        rows: Rows | None = None,
        processor: ProcessorMixin | None = None,
        teacher: PreTrainedModel | PreTrainedConfig | None = None,
    ) -> None:
        """Whether the cache is of these things; what is not given is not looked at.

        Args:
            rows: to train on, as they were drawn.
            processor: of the student.
            teacher: the unpruned model, or its config where it is not in memory.

        Raises:
            UserInputError: it is of another one, or rows cannot be read.
        """
        given = {}
        if teacher is not None:
            given["teacher_config"] = config_fingerprint(getattr(teacher, "config", teacher))
        if isinstance(teacher, PreTrainedModel):
            given["teacher_weights"] = model_fingerprint(teacher)
        if rows is not None:
            self._require_count(rows)
            given["rows"] = rows_fingerprint(rows)
        if processor is not None:
            given["processor"] = processor_fingerprint(processor)
        other = self.index.other_fingerprint(given)
        if other:
            raise UserInputError(f"{self._name} is {other}: name the right one, or write it anew.")

    def require(self, recipe: Recipe, vocabulary: int) -> None:
        """Raise UserInputError where these losses or this vocabulary ask for what the cache does not hold."""
        require_cacheable(recipe)
        if recipe.weight("logits"):
            self._require_logits(recipe.temperature, vocabulary)
        if recipe.weight("hidden") and not self.index.hidden_states:
            raise UserInputError(
                f"{self._name} holds no hidden states: write one for this loss, or leave out 'hidden'."
            )

    def guide(self, inputs: Mapping[str, Any], modality: Tensor, rows: Tensor, recipe: Recipe) -> StoredGuidance:
        """What was said of the rows, one after another, on the device of `modality`. Arguments as for any teacher.

        Raises:
            UserInputError: a row is not in the cache or has other answer tokens there, or a shard is damaged.
        """
        numbers = rows.tolist()
        self._require_same(numbers, answer_tokens(inputs["input_ids"], modality), modality)
        wanted = [name for term, names in _COLUMNS.items() if recipe.weight(term) for name in names]
        columns = {name: self._column(name, numbers).to(modality.device) for name in wanted}
        if "values" not in columns:
            return StoredGuidance(torch.empty(0), torch.empty(0), columns.get("hidden"))
        log_probs = top_log_probabilities(columns["values"], columns["rest"], recipe.temperature)
        return StoredGuidance(columns["indices"].long(), log_probs, columns.get("hidden"))

    def _column(self, name: str, numbers: list[int]) -> Tensor:
        """One column of some rows, one after another."""
        return torch.cat([self._of_row(name, number) for number in numbers])

    def _of_row(self, name: str, number: int) -> Tensor:
        shard, place = divmod(number, self.index.rows_per_shard)
        file, offsets = self._shard(shard)
        return file.get_slice(name)[offsets[place] : offsets[place + 1]]

    def _open(self, number: int) -> tuple[Any, list[int]]:
        """A shard, mapped into memory, and where each of its rows starts; on its first use its hash is checked."""
        name = self.index.shard_names[number]
        if number not in self._whole and self._changed(name):
            raise UserInputError(f"{name} of {self._name} is damaged: delete it and run again.")
        self._whole.add(number)
        file = safetensors.safe_open(self.folder / name, framework="pt")
        return file, file.get_tensor("offsets").tolist()

    def _changed(self, name: str) -> bool:
        try:
            return shard_of(self.folder / name) != self.index.shards[name]
        except OSError:
            return True

    def _require_shards(self) -> None:
        for name in self.index.missing(self.folder):
            if name not in self.index.shards:
                raise UserInputError(f"{self._name} is not complete: write it again, and it goes on.")
            if not (self.folder / name).exists():
                raise UserInputError(f"{name} of {self._name} is missing: write the cache again, which adds it.")
            raise UserInputError(f"{name} of {self._name} is damaged: delete it and run again.")

    def _require_count(self, rows: Rows) -> None:
        if len(rows) != self.index.rows:
            raise UserInputError(
                f"{self._name} is of {self.index.rows:,} rows and the training has {len(rows):,}: draw the same ones "
                "(dataset, fraction, max_samples, seed), or write it anew."
            )

    def _require_logits(self, temperature: float, vocabulary: int) -> None:
        index = self.index
        if not index.top_k:
            raise UserInputError(f"{self._name} holds no logits: write one for this loss, or leave out 'logits'.")
        if index.vocabulary != vocabulary:
            raise UserInputError(
                f"the cached teacher's vocabulary has {index.vocabulary:,} tokens and the student's {vocabulary:,}: "
                "logits cannot be compared; give the model that the student was pruned from."
            )
        # Where all logits are stored there is no rest, which alone depends on the temperature.
        if index.temperature != temperature and index.top_k < vocabulary:
            raise UserInputError(
                f"{self._name} was written at temperature {index.temperature:g}, not {temperature:g}: set "
                f"temperature to {index.temperature:g}, or write it anew."
            )

    def _require_same(self, numbers: list[int], tokens: Tensor, modality: Tensor) -> None:
        """The rows of a batch must have the answers that the teacher saw."""
        counts = positions(modality, "answer").sum(dim=1).tolist()
        for number, own in zip(numbers, tokens.cpu().int().split(counts), strict=True):
            if number >= self.index.rows:
                raise UserInputError(
                    f"row {number} is not in {self._name} of {self.index.rows:,} rows: train on those that it is of."
                )
            stored = self._of_row("tokens", number)
            if not torch.equal(stored, own):
                raise UserInputError(
                    f"row {number} has {len(own)} answer tokens, and others ({len(stored)}) in {self._name}: "
                    "the rows, the chat template or the tokenizer have changed; write the cache anew."
                )
