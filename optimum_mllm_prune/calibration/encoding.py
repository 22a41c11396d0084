"""Conversations through a processor, whatever processor it is."""

import inspect
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jinja2
from transformers import BatchFeature, ProcessorMixin

from ..errors import UserInputError, first_line
from .row_forms import Row


Conversation = list[dict[str, Any]]
"""Messages in the one form, with the images put into their image entries."""

_GENERATION_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")

# For processors without a chat template: images, question, newline, answer, end.
_PLAIN_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ IMAGE }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ (EOS if message['role'] == 'assistant' else '') + ('' if loop.last else '\\n') }}{% endfor %}"
    "{{ '\\n' if add_generation_prompt else '' }}"
)


def conversation_of(row: Row) -> Conversation:
    """The row's messages with each image in its place, as `apply_chat_template` takes them."""
    images = iter(row["images"])
    return [
        {
            "role": message["role"],
            "content": [
                {"type": "image", "image": next(images)} if part["type"] == "image" else dict(part)
                for part in message["content"]
            ],
        }
        for message in row["messages"]
    ]


def encode(
    processor: ProcessorMixin,
    conversations: Sequence[Conversation],
    add_generation_prompt: bool = False,
    mark_answers: bool = False,
    padding_side: str = "right",
) -> BatchFeature:
    """Template, tokenize and process conversations in one call, padded on one side.

    Returns:
        What the processor makes of them as tensors, `input_ids` and `attention_mask` of shape (B, T) among them; with
        `mark_answers` also `assistant_masks` (B, T), which is right only where `answers.py` finds it so.

    Raises:
        UserInputError: the template or the processor refuses the conversations.
    """
    template = template_of(processor)
    with _refusals_in_one_line(processor):
        return processor.apply_chat_template(
            list(conversations),
            chat_template=template,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=add_generation_prompt,
            return_assistant_tokens_mask=mark_answers,
            processor_kwargs={"padding": True, "padding_side": padding_side},
        )


def encode_with_suffix(processor: ProcessorMixin, conversations: Sequence[Conversation]) -> BatchFeature:
    """Like `encode` for a processor that takes the answer as `suffix`, and returns the labels itself.

    Such a model reads its prompt in both directions, so only the processor can say where the answer starts. The answer
    is the last assistant turn; turns before it are prompt.
    """
    last = [max(i for i, message in enumerate(turns) if message["role"] == "assistant") for turns in conversations]
    images = [[part["image"] for m in turns for part in m["content"] if "image" in part] for turns in conversations]
    template = template_of(processor)
    with _refusals_in_one_line(processor):
        prompts = processor.apply_chat_template(
            [turns[:end] for turns, end in zip(conversations, last, strict=True)],
            chat_template=template,
            tokenize=False,
            add_generation_prompt=False,
        )
        return processor(
            text=prompts,
            images=images if any(images) else None,
            suffix=[_text(turns[end]) for turns, end in zip(conversations, last, strict=True)],
            padding=True,
            padding_side="right",
            return_tensors="pt",
        )


def takes_suffix(processor: ProcessorMixin) -> bool:
    """Whether the processor wants the answer apart from the prompt, as PaliGemma's does."""
    return "suffix" in inspect.signature(type(processor).__call__).parameters


def marks_answers(processor: ProcessorMixin) -> bool:
    """Whether the processor can mark the answer tokens: it needs template markers and character offsets."""
    return bool(_GENERATION_MARKER.search(template_of(processor))) and getattr(processor.tokenizer, "is_fast", False)


def template_of(processor: ProcessorMixin) -> str:
    """The processor's chat template, or a plain one where it has none."""
    template = processor.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return template or _plain_template(processor)


def image_token_ids(processor: ProcessorMixin) -> list[int]:
    """Ids of the tokens that stand for (parts of) images; empty if the processor names none."""
    several = getattr(processor, "image_token_ids", None) or [getattr(processor, "image_token_id", None)]
    return [token for token in several if token is not None]


def _plain_template(processor: ProcessorMixin) -> str:
    image_token = getattr(processor, "image_token", None)
    if image_token is None:
        raise UserInputError(
            f"{type(processor).__name__} has neither a chat template nor an image token; set processor.chat_template."
        )
    eos_token = processor.tokenizer.eos_token or ""
    return _PLAIN_TEMPLATE.replace("IMAGE", repr(str(image_token))).replace("EOS", repr(str(eos_token)))


def _text(message: dict[str, Any]) -> str:
    return "".join(part["text"] for part in message["content"] if part["type"] == "text")


@contextmanager
def _refusals_in_one_line(processor: ProcessorMixin) -> Iterator[None]:
    """A template or processor refuses its input with these errors, often over many lines."""
    try:
        yield
    except (jinja2.TemplateError, ValueError, TypeError) as error:
        reason = first_line(error).rstrip(".")
        raise UserInputError(
            f"{type(processor).__name__} refuses a row ({reason}); leave such rows out or set another chat template."
        ) from error
