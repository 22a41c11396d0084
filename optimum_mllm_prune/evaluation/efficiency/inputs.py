"""What the models are run on: an image of noise with a prompt of a wanted length."""

import torch
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from ...backbone.text_config import text_value
from ...calibration.encoding import Conversation, conversation_of, encode, image_token_ids
from ...calibration.rows import synthetic_row
from ...checkpoint.verification import special_tokens
from ...errors import UserInputError


# Words that are added to see how many tokens one of them makes.
_TRIED_WORDS = 64


def prompt_inputs(
    model: PreTrainedModel, processor: ProcessorMixin | None, text_tokens: int, batch_size: int
) -> dict[str, Tensor]:
    """The same prompt `batch_size` times, so that nothing is padding; on the model's device.

    Args:
        model: whose dtype pixel values get.
        processor: makes an image of noise and a question into inputs; without one, they are random token ids.
        text_tokens: how many tokens are to be text: exactly so many without a processor; with one as near as whole
            words come, and never fewer than its template and the question take.
        batch_size: rows.

    Returns:
        `input_ids` and `attention_mask` (rows, tokens), and whatever else the processor makes.

    Raises:
        UserInputError: the processor refuses the row.
    """
    if processor is None:
        return _random_text(model, text_tokens, batch_size)
    conversation = _question(_words_needed(processor, text_tokens))
    encoded = encode(processor, [conversation] * batch_size, add_generation_prompt=True, padding_side="left")
    encoded = encoded.to(model.device, dtype=model.dtype)
    return {name: value for name, value in encoded.items() if isinstance(value, Tensor)}


def count_text_tokens(processor: ProcessorMixin | None, inputs: dict[str, Tensor]) -> int:
    """Tokens of the first row that stand for no image."""
    ids = inputs["input_ids"][0]
    images = [] if processor is None else image_token_ids(processor)
    return int((~torch.isin(ids, torch.tensor(images, dtype=ids.dtype, device=ids.device))).sum())


def check_length(name: str, model: PreTrainedModel, prompt_tokens: int, new_tokens: int) -> None:
    """Raise UserInputError where a model knows fewer positions than prompt and new tokens take."""
    limit = text_value(model.config, "max_position_embeddings")
    if limit is not None and prompt_tokens + new_tokens > limit:
        raise UserInputError(
            f"'{name}' knows {limit} positions, but a prompt of {prompt_tokens} tokens and {new_tokens} new ones take "
            f"{prompt_tokens + new_tokens}: ask for fewer."
        )


def _question(words: int) -> Conversation:
    """The user's turn of a row of noise, made longer by words."""
    (turn,) = conversation_of(synthetic_row())[:1]
    turn["content"][-1]["text"] += " a" * words
    return [turn]


def _words_needed(processor: ProcessorMixin, text_tokens: int) -> int:
    few, many = (
        count_text_tokens(processor, dict(encode(processor, [_question(words)], add_generation_prompt=True)))
        for words in (0, _TRIED_WORDS)
    )
    return max(0, round((text_tokens - few) * _TRIED_WORDS / (many - few)))


def _random_text(model: PreTrainedModel, tokens: int, batch_size: int) -> dict[str, Tensor]:
    vocabulary = model.get_input_embeddings().weight.shape[0]
    # An image token would ask for an image.
    text = torch.tensor(sorted(set(range(vocabulary)) - set(special_tokens(model.config))))
    drawn = torch.randint(len(text), (tokens,), generator=torch.Generator().manual_seed(0))
    ids = text[drawn].expand(batch_size, tokens).contiguous().to(model.device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
