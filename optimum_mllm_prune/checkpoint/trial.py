"""The batch on which a checkpoint is tried when the user gives none."""

import torch
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from ..backbone import is_offloaded
from ..calibration.batches import make_batch
from ..calibration.rows import synthetic_row
from .verification import generation_is_consistent, special_tokens


def trial_inputs(model: PreTrainedModel, processor: ProcessorMixin | None) -> dict[str, Tensor]:
    """An image of noise with a prompt, or 8 tokens of text where there is no processor; on the CPU.

    Raises:
        UserInputError: the processor refuses the row.
    """
    if processor is None:
        return _random_text(model)
    batch = make_batch(processor, [synthetic_row()]).to("cpu", model.dtype)
    return {name: value for name, value in batch.inputs.items() if isinstance(value, Tensor)}


def generation_can_be_compared(model: PreTrainedModel, processor: ProcessorMixin | None, layers: str) -> bool:
    """Whether a model generates the same with and without a cache on its trial inputs.

    Taken for granted with images; on text alone some models differ by nature. `layers` names the decoder layers.
    """
    if is_offloaded(model):
        return False
    return processor is not None or generation_is_consistent(model, trial_inputs(model, None), layers)


def _random_text(model: PreTrainedModel) -> dict[str, Tensor]:
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(vocabulary // 2, vocabulary, (1, 64), generator=torch.Generator().manual_seed(0))
    # An image token would ask for an image.
    ids = ids[~torch.isin(ids, torch.tensor(special_tokens(model.config)))][:8].unsqueeze(0)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
