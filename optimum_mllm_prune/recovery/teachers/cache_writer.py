"""One pass of the teacher over the training rows, stored shard by shard; a broken-off pass goes on where it was."""

import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from accelerate import PartialState
from optimum.utils import logging
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import ProcessorMixin

from ...calibration.rows import Rows
from ...checkpoint import check_output
from ...errors import UserInputError
from ...fingerprints import config_fingerprint, model_fingerprint, processor_fingerprint, rows_fingerprint
from ..batching import NumberedRows, RowCollator
from ..recipe import Recipe
from ..tokens import answer_tokens, positions
from .cache_index import INDEX_NAME, CacheIndex, require_cacheable, shard_of, write_whole
from .cache_size import room_for
from .guidance import LiveGuidance
from .live import LiveTeacher
from .top_logits import TopLogits, top_logits


logger = logging.get_logger("optimum.mllm_prune.recovery")

# Makes a live teacher keep both, at the answer tokens.
_BOTH = Recipe({"logits": 1.0, "hidden": 1.0})


def write_cache(
    folder: str | Path,
    teacher: LiveTeacher,
    processor: ProcessorMixin,
    rows: Rows,
    recipe: Recipe,
    top_k: int = 64,
    *,
    batch_size: int = 8,
    rows_per_shard: int = 256,
    num_workers: int = 0,
    report: Callable[[str], None] = logger.info,
) -> CacheIndex:
    """Store what the teacher says of every answer token, as far as it is not stored yet.

    Every process must call it; shards are dealt out to them.

    Args:
        folder: of the cache; made where there is none.
        teacher: the unpruned model, whole on each process; moved to the process' device.
        processor: the student's.
        rows: exactly those to train on.
        recipe: says what is stored: logits and hidden states, as far as they count, and the temperature.
        top_k: logits a token, at most the vocabulary; not looked at where logits do not count.
        batch_size: rows a forward pass.
        rows_per_shard: what a kill loses at most.
        num_workers: processes that prepare batches.
        report: told in one line, before the pass, what the cache will take; on the first process alone.

    Raises:
        UserInputError: the recipe needs no teacher or asks for what cannot be stored, the folder holds another cache
            or cannot be written, the disk has too little room, or rows cannot be used.
    """
    folder = check_output(folder, overwrite=True)
    index = _with_stored(_new_index(teacher, processor, rows, recipe, top_k, rows_per_shard), folder)
    state = PartialState()
    if index.missing(folder):
        line = room_for(index, folder, processor, rows)
        if state.is_main_process:
            report(line)
    # Another process may look at the folder until here, and what lies in it changes from here on.
    state.wait_for_everyone()
    if state.is_main_process:
        _begin(index, folder)
    state.wait_for_everyone()
    teacher.to(state.device)
    _Pass(folder, index, teacher, processor, rows, batch_size, num_workers).run(state)
    state.wait_for_everyone()
    if state.is_main_process:
        shards = {name: index.shards.get(name) or shard_of(folder / name) for name in index.shard_names}
        index.with_shards(shards).save(folder)
    state.wait_for_everyone()
    return CacheIndex.load(folder)


@dataclass
class _Pass:
    """What a pass works with; arguments as of `write_cache`."""

    folder: Path
    index: CacheIndex
    teacher: LiveTeacher
    processor: ProcessorMixin
    rows: Rows
    batch_size: int
    num_workers: int

    def run(self, state: PartialState) -> None:
        """Write the shards of this process that are not there."""
        own = range(state.process_index, len(self.index.shard_names), state.num_processes)
        missing = [number for number in own if not (self.folder / self.index.shard_names[number]).exists()]
        total = sum(len(self.index.rows_of(number)) for number in missing)
        with tqdm(total=total, desc="Asking the teacher", unit="row", disable=not state.is_main_process) as bar:
            for number in missing:
                self._write(number, bar)

    def _write(self, number: int, bar: tqdm) -> None:
        content = safetensors.torch.save(self._shard(number, bar))
        try:
            write_whole(self.folder / self.index.shard_names[number], content)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            place = f"shard {number + 1} of {len(self.index.shard_names)} of the teacher cache"
            raise UserInputError(
                f"the disk is full at {place}: free some room and run again; finished shards are kept."
            ) from error

    def _shard(self, number: int, bar: tqdm) -> dict[str, Tensor]:
        """All columns of a shard, and `offsets` (rows + 1,): where each row's tokens start."""
        numbers = self.index.rows_of(number)
        said: dict[int, dict[str, Tensor]] = {}
        for batch in self._batches(numbers):
            said |= self._said(batch)
            bar.update(len(batch["row_number"]))
        columns = {name: torch.cat([said[row][name] for row in numbers]) for name in said[numbers[0]]}
        lengths = torch.tensor([0, *(len(said[row]["tokens"]) for row in numbers)])
        return {**columns, "offsets": lengths.cumsum(0)}

    def _batches(self, numbers: range) -> DataLoader:
        """Batches of some rows in their order, those with images apart from those without."""
        flags = self.rows.take(numbers).have_images()
        kinds = [[row for row, flag in zip(numbers, flags, strict=True) if flag == kind] for kind in (True, False)]
        batches = [kind[i : i + self.batch_size] for kind in kinds for i in range(0, len(kind), self.batch_size)]
        collator = RowCollator(self.processor)
        return DataLoader(
            NumberedRows(self.rows), batch_sampler=batches, collate_fn=collator, num_workers=self.num_workers
        )

    def _said(self, batch: Mapping[str, Any]) -> dict[int, dict[str, Tensor]]:
        """Row number to what the teacher says at its answer positions, by column."""
        inputs = {name: value for name, value in batch.items() if name not in ("labels", "modality", "row_number")}
        guidance = self.teacher.guide(inputs, batch["modality"], batch["row_number"], _BOTH)
        if not guidance.final_states.isfinite().all():
            raise UserInputError("the teacher's hidden states overflow: load it in bfloat16 or float32.")
        columns = {"tokens": answer_tokens(inputs["input_ids"], batch["modality"]).int()}
        if self.index.top_k:
            columns |= self._top(guidance)._asdict()
        if self.index.hidden_states:
            columns["hidden"] = guidance.final_states
        counts = positions(batch["modality"], "answer").sum(dim=1).tolist()
        split = {name: column.cpu().split(counts) for name, column in columns.items()}
        return {
            row: {name: parts[i] for name, parts in split.items()}
            for i, row in enumerate(batch["row_number"].tolist())
        }

    @torch.no_grad()
    def _top(self, guidance: LiveGuidance) -> TopLogits:
        index = self.index
        return top_logits(guidance.head, guidance.before_head, index.vocabulary, index.top_k, index.temperature)


def _new_index(
    teacher: LiveTeacher, processor: ProcessorMixin, rows: Rows, recipe: Recipe, top_k: int, rows_per_shard: int
) -> CacheIndex:
    require_cacheable(recipe)
    if not recipe.needs_teacher:
        raise UserInputError("this loss looks at no teacher: leave out the cache.")
    if top_k < 1 or rows_per_shard < 1:
        raise UserInputError(f"top_k and rows_per_shard must be at least 1, got {top_k} and {rows_per_shard}.")
    model = teacher.model
    vocabulary = len(model.get_output_embeddings().weight)
    return CacheIndex(
        top_k=min(top_k, vocabulary) if recipe.weight("logits") else 0,
        temperature=recipe.temperature if recipe.weight("logits") else None,
        hidden_states=bool(recipe.weight("hidden")),
        rows=len(rows),
        rows_per_shard=rows_per_shard,
        vocabulary=vocabulary,
        hidden_size=teacher.hidden_size,
        dtype=str(model.dtype).removeprefix("torch."),
        quantization=teacher.quantization,
        fingerprints={
            "teacher_config": config_fingerprint(model.config),
            "teacher_weights": model_fingerprint(model),
            "rows": rows_fingerprint(rows),
            "processor": processor_fingerprint(processor),
        },
    )


def _with_stored(index: CacheIndex, folder: Path) -> CacheIndex:
    """The index with those shards that an earlier run has completed."""
    if not (folder / INDEX_NAME).exists():
        # The index is the first thing written, so a cache without one is none; nothing of others is touched.
        if folder.exists() and any(not path.name.endswith(".partial") for path in folder.iterdir()):
            raise UserInputError(f"'{folder}' holds other things than a teacher cache: name another folder.")
        return index
    old = CacheIndex.load(folder)
    difference = old.difference(index)
    if difference:
        raise UserInputError(f"'{folder}' holds a cache {difference}: name another folder, or delete that one.")
    gone = old.missing(folder)
    return index.with_shards({name: shard for name, shard in old.shards.items() if name not in gone})


def _begin(index: CacheIndex, folder: Path) -> None:
    """Make the folder, say what it will hold, and clear away what is left of damaged shards."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / INDEX_NAME).exists():
        for name in CacheIndex.load(folder).shards.keys() - index.shards.keys():
            (folder / name).unlink(missing_ok=True)
    index.save(folder)
