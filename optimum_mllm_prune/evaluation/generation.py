"""Answers by greedy generation."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from ..calibration.encoding import conversation_of, encode
from ..calibration.row_forms import Row, answer_text
from ..calibration.rows import Rows, as_rows
from ..errors import UserInputError
from .dealing import by_batches


class Answer(NamedTuple):
    """What a model said.

    Attributes:
        text: without special tokens and outer white space.
        tokens: as generated, up to and without the one that ends it.
    """

    text: str
    tokens: tuple[int, ...]


@torch.no_grad()
def generate(
    model: PreTrainedModel, processor: ProcessorMixin, rows: Any, batch_size: int = 64, max_new_tokens: int = 48
) -> list[Answer]:
    """What the model answers to the turns before the last answer of each row.

    Every process of a launch must call it; batches are dealt out to them.

    Args:
        model: run in eval mode on its own device.
        processor: its processor, with a chat template.
        rows: rows in any form the pruner reads.
        batch_size: rows generated together, padded on the left.
        max_new_tokens: longest answer in tokens.

    Returns:
        An answer for each row, in their order.

    Raises:
        UserInputError: a row cannot be read, or ends with a question.
    """
    model.eval()
    rows = as_rows(rows)
    ends = _ends(model)

    def answer(positions: list[int]) -> list[Answer]:
        prompts = [conversation_of(_question(_answered(rows, position))) for position in positions]
        inputs = encode(processor, prompts, add_generation_prompt=True, padding_side="left")
        inputs = inputs.to(model.device, dtype=model.dtype)
        tokens = model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=max_new_tokens)
        new = tokens[:, inputs["input_ids"].shape[1] :]
        texts = processor.batch_decode(new, skip_special_tokens=True)
        return [Answer(text.strip(), _before_end(own, ends)) for text, own in zip(texts, new, strict=True)]

    return by_batches(rows, batch_size, answer, "Generating")


def generate_answers(
    model: PreTrainedModel, processor: ProcessorMixin, rows: Any, batch_size: int = 64, max_new_tokens: int = 48
) -> list[str]:
    """The texts of `generate`."""
    return [answer.text for answer in generate(model, processor, rows, batch_size, max_new_tokens)]


def reference_answers(rows: Any) -> list[str]:
    """The answer that each row gives: the text of its last turn. Raises UserInputError as `generate` does."""
    rows = as_rows(rows)
    return [answer_text(_answered(rows, position)["messages"][-1]) for position in range(len(rows))]


def accepted_answers(rows: Any) -> list[list[str]]:
    """All answers that are right for each row: its `answers` where it has any, else that of its last turn.

    `answers` is a text, or a list of texts or of mappings with an `answer` each, as in VQAv2's file.

    Raises:
        UserInputError: as `generate`, or `answers` are of another form.
    """
    rows = as_rows(rows)
    given = [_listed(rows.raw(position).get("answers"), position) for position in range(len(rows))]
    return [listed or [text] for listed, text in zip(given, reference_answers(rows), strict=True)]


def _listed(answers: Any, position: int) -> list[str]:
    if answers is None or isinstance(answers, str | int | float):
        return [] if answers in (None, "") else [str(answers)]
    entries = answers if isinstance(answers, list | tuple) else [None]
    found = [one.get("answer") if isinstance(one, Mapping) else one for one in entries]
    if not all(isinstance(one, str | int | float) for one in found):
        raise UserInputError(
            f"The answers of row {position} cannot be read: write them as a list of texts, or of mappings with an "
            "'answer' each."
        )
    return [str(one) for one in found]


def _question(row: Row) -> Row:
    return {**row, "messages": row["messages"][:-1]}


def _answered(rows: Rows, position: int) -> Row:
    row = rows[position]
    if not answer_text(row["messages"][-1]):
        raise UserInputError(
            f"Row {position} does not end with an answer to compare with: add it or take the row out."
        )
    return row


def _ends(model: PreTrainedModel) -> list[int]:
    """Tokens that end an answer or stand behind its end."""
    config = model.generation_config
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    return [token for token in (*ends, config.pad_token_id) if token is not None]


def _before_end(tokens: Tensor, ends: Sequence[int]) -> tuple[int, ...]:
    said = tokens.tolist()
    return tuple(said[: next((i for i, token in enumerate(said) if token in ends), len(said))])
