"""Which tokens of a conversation are the assistant's answers."""

import torch
from torch import BoolTensor, LongTensor
from transformers import ProcessorMixin

from ..errors import UserInputError
from .encoding import Conversation, encode
from .row_forms import answer_text


def answer_mask(
    processor: ProcessorMixin, conversation: Conversation, ids: LongTensor, proposed: BoolTensor | None
) -> BoolTensor:
    """The answer tokens of one conversation.

    The processor's own mask is taken where it holds the answers. It is empty where the template lacks
    `{% generation %}`, and shifted where the processor puts a BOS token in after the template was rendered; then the
    answers are found by encoding the conversation up to each of them.

    Args:
        ids: (T), without padding.
        proposed: (T), the processor's mask, if it makes one.

    Returns:
        (T).

    Raises:
        UserInputError: the answers cannot be found, because the template renders a start differently from the whole.
    """
    turns = [position for position, message in enumerate(conversation) if answer_text(message)]
    answers = [_as_decoded(processor, answer_text(conversation[position])) for position in turns]
    spans = [] if proposed is None else _runs(proposed)
    if not _hold_answers(processor, ids, spans, answers):
        spans = [_answer_span(processor, conversation, position, ids) for position in turns]
    mask = torch.zeros(len(ids), dtype=torch.bool)
    for (start, end), answer in zip(spans, answers, strict=True):
        mask[start : _without_next_turn(processor, ids, start, end, answer)] = True
    return mask


def _hold_answers(
    processor: ProcessorMixin, ids: LongTensor, spans: list[tuple[int, int]], answers: list[str]
) -> bool:
    """Whether the spans begin with the answers, one by one; what ends a turn may follow."""
    return len(spans) == len(answers) and all(
        _decoded(processor, ids[start:end]).startswith(answer)
        for (start, end), answer in zip(spans, answers, strict=True)
    )


def _without_next_turn(processor: ProcessorMixin, ids: LongTensor, start: int, end: int, answer: str) -> int:
    """The end of a span without trailing tokens that are neither of the answer nor an end-of-turn token.

    A template that ends an answer with a space makes it part of the next turn's first token, as LLaVA's does.
    """
    control = processor.tokenizer.added_tokens_decoder
    occurrences = _decoded(processor, ids[start:end]).count(answer)
    while end > start + 1 and int(ids[end - 1]) not in control:
        if _decoded(processor, ids[start : end - 1]).count(answer) != occurrences:
            break
        end -= 1
    return end


def _runs(mask: BoolTensor) -> list[tuple[int, int]]:
    """Half-open spans of neighbouring true entries."""
    edges = torch.diff(mask.int(), prepend=torch.zeros(1), append=torch.zeros(1))
    starts, ends = (edges > 0).nonzero().flatten().tolist(), (edges < 0).nonzero().flatten().tolist()
    return list(zip(starts, ends, strict=True))


def _answer_span(
    processor: ProcessorMixin, conversation: Conversation, position: int, ids: LongTensor
) -> tuple[int, int]:
    """Where the assistant turn at `position` starts and ends, its end-of-turn tokens included."""
    prompt = _ids(processor, conversation[:position], add_generation_prompt=True)
    start = _shared(prompt, ids)
    last = position == len(conversation) - 1
    end = len(ids) if last else _shared(_ids(processor, conversation[: position + 1]), ids)
    text, answer = _decoded(processor, ids[start:end]), _as_decoded(processor, answer_text(conversation[position]))
    # The prompt's last token may merge with the answer's first. Where the prompt is a prefix but for that, templates
    # may write more than the answer, such as an empty thought; where it is not, only the answer itself will do.
    is_prefix = 0 < len(prompt) <= start + 1
    if text.startswith(answer) or (is_prefix and answer in text and "{'type':" not in text):
        return start, end
    raise UserInputError(
        f"The chat template of {type(processor).__name__} does not render an answer after its prompt, so its tokens "
        "cannot be found; set processor.chat_template to one with {% generation %} markers."
    )


def _ids(processor: ProcessorMixin, conversation: Conversation, add_generation_prompt: bool = False) -> LongTensor:
    if not conversation:
        return torch.empty(0, dtype=torch.long)
    return encode(processor, [conversation], add_generation_prompt)["input_ids"][0]


def _shared(first: LongTensor, second: LongTensor) -> int:
    """Length of the common prefix."""
    length = min(len(first), len(second))
    return int((first[:length] == second[:length]).long().cumprod(0).sum())


def _decoded(processor: ProcessorMixin, ids: LongTensor) -> str:
    """The tokens' text without its white space, which tokenizers move about at turns' edges."""
    return "".join(processor.tokenizer.decode(ids, skip_special_tokens=False).split())


def _as_decoded(processor: ProcessorMixin, answer: str) -> str:
    """The answer as this tokenizer gives it back; some lower-case it or lose characters."""
    return _decoded(processor, processor.tokenizer(answer, add_special_tokens=False)["input_ids"])
