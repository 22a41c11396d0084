"""Rows of any length: what benchmarks of whole commands are run on."""

import sys
from pathlib import Path
from typing import Any

from datasets import Dataset
from random_models import PROCESSOR
from transformers import AutoProcessor


sys.path.append(str(PROCESSOR.parent))

import scenes

from optimum_mllm_prune.calibration.batches import make_batch
from optimum_mllm_prune.calibration.row_forms import normalize_row


def write_rows(folder: Path, processor_folder: Path, number: int, tokens: int, seed: int) -> None:
    """Digit scenes whose question is lengthened until a row has about so many tokens."""
    processor = AutoProcessor.from_pretrained(processor_folder)

    def length(row: dict[str, Any]) -> int:
        return make_batch(processor, [normalize_row(row)]).inputs["input_ids"].shape[1]

    def lengthened(row: dict[str, Any], words: int) -> dict[str, Any]:
        asked, *rest = row["messages"]
        image, text = asked["content"]
        text = {**text, "text": text["text"] + " digit" * words}
        return {**row, "messages": [{**asked, "content": [image, text]}, *rest]}

    drawn = list(scenes.build(number, 1, seed)["train"])
    short, longer = (length(lengthened(drawn[0], words)) for words in (0, 64))
    words = [round((tokens - length(row)) * 64 / (longer - short)) for row in drawn]
    made = [lengthened(row, more) for row, more in zip(drawn, words, strict=True)]
    print(f"rows of {length(made[0])} tokens", flush=True)
    Dataset.from_list(made, features=scenes.build(1, 1)["train"].features).save_to_disk(folder)
