"""One image value of a dataset row to an RGB image in memory."""

import base64
from io import BytesIO
from pathlib import Path
from typing import Any

import fsspec
from PIL import Image, ImageOps

from ..errors import UserInputError


def open_image(value: Any, folder: Path | None, row_index: int) -> Image.Image:
    """Decode one image, upright and in RGB.

    Args:
        value: a PIL image; a path, absolute or relative to `folder`; a URL, such as the `hf://` ones of a streamed
            imagefolder; encoded bytes; a `data:` URI; or the dict `{"bytes", "path"}` that `datasets` stores, whose
            bytes may be base64 text where it came out of JSON.
        folder: where relative paths start; `None` means the current folder.
        row_index: named in the error.

    Raises:
        UserInputError: the file is missing, or it is no image. Only the file's name is shown, never its full path.
    """
    if isinstance(value, Image.Image):
        return _upright_rgb(value)
    try:
        return _upright_rgb(Image.open(_encoded(value, folder)))
    except FileNotFoundError:
        raise UserInputError(
            f"Row {row_index}: image file {_name(value)} does not exist; image paths are relative to the dataset file."
        ) from None
    except (OSError, ValueError, SyntaxError, TypeError, Image.DecompressionBombError):
        raise UserInputError(
            f"Row {row_index}: {_name(value)} cannot be read as an image; mend the file or take the row out."
        ) from None


def _upright_rgb(image: Image.Image) -> Image.Image:
    """Cameras store a turned image with a note in its EXIF data; `datasets` turns it upright, so we do too."""
    return ImageOps.exif_transpose(image).convert("RGB")


def _encoded(value: Any, folder: Path | None) -> BytesIO | Path:
    """The image file's content, or where it lies."""
    if isinstance(value, dict):
        content = value.get("bytes")
        if isinstance(content, str):
            content = base64.b64decode(content, validate=True)
        value = value.get("path") if content is None else content
    if isinstance(value, bytes):
        return BytesIO(value)
    if isinstance(value, str) and value.startswith("data:"):
        return BytesIO(base64.b64decode(value.partition(",")[2], validate=True))
    if isinstance(value, str) and "://" in value:
        with fsspec.open(value, "rb") as file:
            return BytesIO(file.read())
    return Path(folder or ".", value)


def _name(value: Any) -> str:
    """What to call the image in a message, without its folder."""
    path = value.get("path") if isinstance(value, dict) else value
    if isinstance(path, str | Path) and not str(path).startswith("data:"):
        return repr(Path(path).name)
    return "an embedded image"
