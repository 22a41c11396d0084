"""Rows to what a model takes, and what each of its tokens is."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from optimum.utils import logging
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin

from ..errors import UserInputError
from .answers import answer_mask
from .encoding import (
    Conversation,
    conversation_of,
    encode,
    encode_with_suffix,
    image_token_ids,
    marks_answers,
    takes_suffix,
)
from .row_forms import Row


logger = logging.get_logger("optimum.mllm_prune.calibration")

IGNORED_LABEL = -100


class Modality(IntEnum):
    """What a token stands for."""

    PADDING = 0
    IMAGE = 1
    PROMPT = 2
    ANSWER = 3


# Of real tokens, in the order in which statistics are kept apart.
MODALITIES = (Modality.IMAGE, Modality.PROMPT, Modality.ANSWER)


def weight_of_each(by_modality: Mapping[str, float] | None) -> Tensor:
    """How much tokens count by what they are: fp64 (4,), in the order of `Modality`; 1 where it is not named."""
    return torch.tensor([(by_modality or {}).get(one.name.lower(), 1.0) for one in Modality], dtype=torch.float64)


@dataclass
class Batch:
    """B conversations of at most T tokens, padded on the right.

    Attributes:
        inputs: what the processor made for the model's forward: `input_ids` and `attention_mask` (B, T), pixel values
            and whatever else the architecture wants.
        labels: (B, T) int64, the input ids of answer tokens, -100 elsewhere.
        modality: (B, T) int8, values of `Modality`.
    """

    inputs: dict[str, Any]
    labels: Tensor
    modality: Tensor

    @property
    def answer_tokens(self) -> int:
        """Tokens that the answer loss is the mean over: a row's first token is foretold by nothing."""
        return int((self.labels[:, 1:] != IGNORED_LABEL).sum())

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Batch":
        """The batch on `device`, with floating inputs such as pixel values in `dtype`, the model's."""
        return Batch(
            {name: _moved(value, device, dtype) for name, value in self.inputs.items()},
            self.labels.to(device),
            self.modality.to(device),
        )


def make_batch(processor: ProcessorMixin, rows: Sequence[Row]) -> Batch:
    """Rows through the processor, with labels on exactly the answer tokens. Nothing is truncated.

    Args:
        rows: either all with images or all without: many processors refuse a mixture, and `batches` makes none.

    Raises:
        UserInputError: the processor refuses a row, its template leaves out the images, or a row's answer cannot be
            found among its tokens.
    """
    conversations = [conversation_of(row) for row in rows]
    if takes_suffix(processor):
        encoded = encode_with_suffix(processor, conversations)
        answers = encoded.pop("labels") != IGNORED_LABEL
    else:
        encoded = encode(processor, conversations, mark_answers=marks_answers(processor))
        answers = _find_answers(processor, conversations, encoded)
    ids, real = encoded["input_ids"], encoded["attention_mask"].bool()
    images = torch.isin(ids, torch.tensor(image_token_ids(processor), dtype=ids.dtype))
    answers &= real & ~images
    _check(processor, rows, images, answers)
    return Batch(dict(encoded), ids.masked_fill(~answers, IGNORED_LABEL), _modality(real, images, answers))


def batches(
    processor: ProcessorMixin, rows: Iterable[Row], batch_size: int, max_length: int | None = None
) -> Iterator[Batch]:
    """Batches of at most `batch_size` rows, rows with and without images apart.

    A row longer than `max_length` tokens is left out, never cut: a cut through an image's tokens would not run.

    Raises:
        UserInputError: as `make_batch`; or every row is too long.
    """
    for group in alike(_short_rows(processor, rows, max_length), batch_size):
        yield make_batch(processor, group)


def alike(rows: Iterable[Row], batch_size: int) -> Iterator[list[Row]]:
    """The rows of one batch after the other, at most `batch_size`, those with and without images apart."""
    pending: dict[bool, list[Row]] = {True: [], False: []}
    for row in rows:
        group = pending[bool(row["images"])]
        group.append(row)
        if len(group) == batch_size:
            yield list(group)
            group.clear()
    yield from filter(None, pending.values())


def _short_rows(processor: ProcessorMixin, rows: Iterable[Row], max_length: int | None) -> Iterator[Row]:
    """The rows of at most `max_length` tokens; how many were left out is logged at the end."""
    if max_length is None:
        yield from rows
        return
    too_long = []
    num_kept = 0
    for row in rows:
        length = make_batch(processor, [row]).labels.shape[1]
        if length <= max_length:
            num_kept += 1
            yield row
        else:
            too_long.append(length)
    if too_long and not num_kept:
        raise UserInputError(
            f"All {len(too_long)} rows are longer than {max_length} tokens (the shortest has {min(too_long)}); "
            "allow more tokens or give shorter rows."
        )
    if too_long:
        logger.warning(
            f"{len(too_long)} of {num_kept + len(too_long)} rows left out: longer than {max_length} tokens."
        )


def _find_answers(processor: ProcessorMixin, conversations: list[Conversation], encoded: BatchFeature) -> Tensor:
    """(B, T), true on answer tokens; takes the processor's mask out of `encoded`."""
    proposed = encoded.pop("assistant_masks", None)
    real = encoded["attention_mask"].bool()
    answers = torch.zeros_like(real)
    for i, conversation in enumerate(conversations):
        mask = None if proposed is None else proposed[i][real[i]].bool()
        answers[i, real[i]] = answer_mask(processor, conversation, encoded["input_ids"][i][real[i]], mask)
    return answers


def _check(processor: ProcessorMixin, rows: Sequence[Row], images: Tensor, answers: Tensor) -> None:
    """Each row must have kept its images and its answer."""
    name = type(processor).__name__
    for i, row in enumerate(rows):
        if row["images"] and image_token_ids(processor) and not images[i].any():
            raise UserInputError(f"The chat template of {name} leaves the images out; set one that places them.")
        if not answers[i].any():
            raise UserInputError(f"{name} makes no token of a row's answer; take the row out.")


def _modality(real: Tensor, images: Tensor, answers: Tensor) -> Tensor:
    """(B, T) int8. Later lines overrule earlier ones; the three masks never contradict each other."""
    modality = torch.full(real.shape, Modality.PADDING, dtype=torch.int8)
    modality[real] = Modality.PROMPT
    modality[real & images] = Modality.IMAGE
    modality[answers] = Modality.ANSWER
    return modality


def _moved(value: Any, device: torch.device | str, dtype: torch.dtype | None) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.to(device, dtype if value.is_floating_point() else None)
