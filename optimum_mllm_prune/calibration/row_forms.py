"""The accepted forms of a dataset row, each into the one form the rest of the package knows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from PIL import Image

from ..errors import UserInputError
from .images import open_image


IMAGE_MARKER = "<image>"
"""Where an image stands in a text, as LLaVA's files write it."""

ACCEPTED_FORMS = '"messages" (with "images"), "image"+"question"+"answer", or "image"+"conversations"'

_LLAVA_ROLES = {"human": "user", "gpt": "assistant"}


class Row(TypedDict):
    """One conversation.

    `images` are RGB. Each message is `{"role": str, "content": list}`; a content entry is `{"type": "image"}` or
    `{"type": "text", "text": str}`. There are as many image entries as images, in the same order, and at least one
    assistant message with text.
    """

    images: list[Image.Image]
    messages: list[dict[str, Any]]


def normalize_row(raw: Mapping[str, Any], row_index: int = 0, folder: Path | None = None) -> Row:
    """Bring a raw row into the one form; a row that is in it already comes back equal.

    Args:
        raw: TRL's `images` + `messages`; or `image`, `question`, `answer`; or LLaVA's `image` + `conversations`.
        row_index: named in errors.
        folder: where relative image paths start.

    Raises:
        UserInputError: no usable column, an image that is missing or unreadable, image markers that do not match the
            images, or no assistant answer.
    """
    turns = _turns(raw, row_index)
    embedded = [value for _, content in turns for value in _embedded_images(content)]
    values = _image_values(raw) or embedded
    messages = [{"role": role, "content": _content(content, row_index)} for role, content in turns]
    messages = _with_markers(messages, len(values), row_index)
    if not any(answer_text(message) for message in messages):
        raise UserInputError(f"Row {row_index} has no assistant answer; add one or take the row out.")
    return {"images": [open_image(value, folder, row_index) for value in values], "messages": messages}


def answer_text(message: Mapping[str, Any]) -> str:
    """The text of an assistant message in the one form; empty for other roles."""
    return message_text(message).strip() if message["role"] == "assistant" else ""


def message_text(message: Mapping[str, Any]) -> str:
    """All text of a message in the one form, without its images."""
    return "".join(entry["text"] for entry in message["content"] if entry["type"] == "text")


def has_images(raw: Mapping[str, Any]) -> bool:
    """Whether a raw row has any image, in its columns or inside its turns; nothing is decoded."""
    if _image_values(raw):
        return True
    turns = raw.get("messages") or raw.get("conversations") or []
    return any(_embedded_images(turn.get("content")) for turn in turns if isinstance(turn, Mapping))


def require_usable_columns(columns: list[str]) -> None:
    """Raise `UserInputError` when rows with these columns are in none of the accepted forms."""
    found = set(columns)
    if not ("messages" in found or "conversations" in found or {"question", "answer"} <= found):
        names = ", ".join(repr(name) for name in columns) or "none"
        raise UserInputError(f"The dataset has no usable column (found: {names}); rows need {ACCEPTED_FORMS}.")


def _turns(raw: Mapping[str, Any], row_index: int) -> list[tuple[str, Any]]:
    """The conversation as (role, content as it came)."""
    require_usable_columns(list(raw))
    if raw.get("messages") is not None:
        pairs = _pairs(raw["messages"], "role", "content", row_index)
    elif raw.get("conversations") is not None:
        pairs = _pairs(raw["conversations"], "from", "value", row_index)
    else:
        pairs = [("user", raw.get("question")), ("assistant", raw.get("answer"))]
    for role, _ in pairs:
        if role not in ("system", "user", "assistant"):
            raise UserInputError(f"Row {row_index} has a turn of role {role!r}; use system, user or assistant.")
    return pairs


def _pairs(turns: Any, role_key: str, content_key: str, row_index: int) -> list[tuple[Any, Any]]:
    if not isinstance(turns, list | tuple) or not all(isinstance(turn, Mapping) for turn in turns):
        raise UserInputError(
            f"Row {row_index} has a conversation that is no list of turns; write it as a list of "
            f'{{"{role_key}": ..., "{content_key}": ...}}.'
        )
    return [(_LLAVA_ROLES.get(turn.get(role_key), turn.get(role_key)), turn.get(content_key)) for turn in turns]


def _image_values(raw: Mapping[str, Any]) -> list[Any]:
    """The row's images, still encoded: `images` before `image`, one image or a list."""
    values = raw.get("images") if raw.get("images") is not None else raw.get("image")
    if values is None:
        return []
    return list(values) if isinstance(values, list | tuple) else [values]


def _embedded_images(content: Any) -> list[Any]:
    """Images that stand inside the content entries themselves, as transformers' chat templates take them."""
    entries = content if isinstance(content, list) else []
    images = [entry for entry in entries if isinstance(entry, dict) and entry.get("type") == "image"]
    values = [entry.get("image") if entry.get("image") is not None else entry.get("path") for entry in images]
    return [value for value in values if value is not None]


def _content(content: Any, row_index: int) -> list[dict[str, Any]]:
    """Content as a list of image and text entries; Arrow's filled-up keys (`text: None` on an image) go."""
    if content is None:
        return []
    if not isinstance(content, list | tuple):
        return _split_at_markers(str(content))
    parts: list[dict[str, Any]] = []
    for entry in content:
        entry = {"type": "text", "text": entry} if isinstance(entry, str) else entry
        kind = entry.get("type") if isinstance(entry, Mapping) else type(entry).__name__
        if kind == "image":
            parts.append({"type": "image"})
        elif kind == "text" and isinstance(entry.get("text") or "", str):
            parts += _split_at_markers(entry.get("text") or "")
        else:
            raise UserInputError(f"Row {row_index} has content of type {kind!r}; only image and text can be used.")
    return parts


def _split_at_markers(text: str) -> list[dict[str, Any]]:
    """`"<image>\\nWhat is it?"` to an image entry and a text entry; text without a marker stays as it is."""
    pieces = text.split(IMAGE_MARKER)
    if len(pieces) == 1:
        return [{"type": "text", "text": text}] if text else []
    parts: list[dict[str, Any]] = []
    for position, piece in enumerate(pieces):
        if position:
            parts.append({"type": "image"})
        if piece.strip():
            parts.append({"type": "text", "text": piece.strip()})
    return parts


def _with_markers(messages: list[dict[str, Any]], num_images: int, row_index: int) -> list[dict[str, Any]]:
    """As many image entries as images: where there is none, they go to the start of the first user turn."""
    markers = sum(entry["type"] == "image" for message in messages for entry in message["content"])
    if markers == num_images:
        return messages
    if markers:
        raise UserInputError(f"Row {row_index} has {markers} image markers but {num_images} images; make them match.")
    for message in messages:
        if message["role"] == "user":
            message["content"] = [{"type": "image"} for _ in range(num_images)] + message["content"]
            return messages
    raise UserInputError(f"Row {row_index} has images but no user turn to put them in; add a question.")
