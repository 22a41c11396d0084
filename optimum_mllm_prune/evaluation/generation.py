"""Answers by greedy generation."""

from collections.abc import Sequence
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from ..calibration.encoding import conversation_of, encode
from ..calibration.row_forms import Row, answer_text, normalize_row
from ..errors import UserInputError


@torch.no_grad()
def generate_answers(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    rows: Sequence[Any],
    batch_size: int = 64,
    max_new_tokens: int = 48,
) -> list[str]:
    """What the model answers to the turns before the last answer of each row.

    Args:
        model: run in eval mode on its own device.
        processor: its processor, with a chat template.
        rows: rows in any form the pruner reads.
        batch_size: rows generated together, padded on the left.
        max_new_tokens: longest answer in tokens.

    Returns:
        The answers' text without special tokens and outer white space, in the order of `rows`.

    Raises:
        UserInputError: a row cannot be read, or ends with a question.
    """
    model.eval()
    answers = []
    for start in tqdm(range(0, len(rows), batch_size), desc="Generating", unit="batch"):
        batch = [_answered(rows[i], i) for i in range(start, min(start + batch_size, len(rows)))]
        prompts = [conversation_of({**row, "messages": row["messages"][:-1]}) for row in batch]
        inputs = encode(processor, prompts, add_generation_prompt=True, padding_side="left")
        inputs = inputs.to(model.device, dtype=model.dtype)
        tokens = model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=max_new_tokens)
        new = tokens[:, inputs["input_ids"].shape[1] :]
        answers += [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]
    return answers


def reference_answers(rows: Sequence[Any]) -> list[str]:
    """The answer that each row gives: the text of its last turn. Raises UserInputError as `generate_answers` does."""
    return [answer_text(_answered(rows[i], i)["messages"][-1]) for i in range(len(rows))]


def _answered(raw: Any, row_index: int) -> Row:
    row = normalize_row(raw, row_index)
    if not answer_text(row["messages"][-1]):
        raise UserInputError(
            f"Row {row_index} does not end with an answer to compare with: add it or take the row out."
        )
    return row
