"""What a teacher cache takes on the disk, said and refused before the pass starts."""

import shutil
from pathlib import Path

import torch
from transformers import ProcessorMixin

from ...calibration.batches import make_batch
from ...calibration.rows import Rows
from ...errors import UserInputError
from ...planning.byte_sizes import in_gigabytes
from ..tokens import positions
from .cache_index import CacheIndex


# Rows that are encoded to see how many answer tokens a row has.
_SAMPLE = 32


def size_per_token(top_k: int, hidden_size: int, dtype: torch.dtype) -> int:
    """Bytes of an answer token in the cache.

    Args:
        top_k: logits stored; 0 for none.
        hidden_size: of the stored hidden states; 0 for none.
        dtype: the teacher's number format.
    """
    # The token's id, and per logit an int32 index; the rest is one fp32 number.
    logits = top_k * (dtype.itemsize + 4) + 4 if top_k else 0
    return 4 + logits + hidden_size * dtype.itemsize


def room_for(index: CacheIndex, folder: Path, processor: ProcessorMixin, rows: Rows) -> str:
    """What the cache will take, in one line.

    Args:
        index: what is to be stored.
        folder: where to; it need not exist.
        processor: the student's.
        rows: all of them; some are encoded.

    Raises:
        UserInputError: the disk has too little room for what is not stored yet, or a row cannot be used.
    """
    hidden_size = index.hidden_size if index.hidden_states else 0
    a_token = size_per_token(index.top_k, hidden_size, getattr(torch, index.dtype))
    a_row = _tokens_a_row(processor, rows)
    total = a_row * len(rows) * a_token
    lacking = total - sum(path.stat().st_size for name in index.shard_names if (path := folder / name).exists())
    free = shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.exists())).free
    if free < lacking:
        raise UserInputError(
            f"the disk of '{folder}' has {in_gigabytes(free)} left and the teacher cache needs "
            f"{in_gigabytes(lacking)}: choose a smaller top_k, a loss without 'hidden', fewer rows or another folder."
        )
    return (
        f"The teacher cache takes {a_token:,} bytes an answer token, about {in_gigabytes(total)} in all "
        f"({len(rows):,} rows of about {a_row:.1f} answer tokens)."
    )


def _tokens_a_row(processor: ProcessorMixin, rows: Rows) -> float:
    """Mean number of answer tokens of some rows, evenly spread."""
    some = range(0, len(rows), -(-len(rows) // _SAMPLE))
    counts = [int(positions(make_batch(processor, [rows[i]]).modality, "answer").sum()) for i in some]
    return sum(counts) / len(counts)
