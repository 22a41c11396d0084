"""What may be written into a card or a report that others read: no token, and of a local path its last part alone."""

import re
import shlex
from collections.abc import Iterator
from typing import Any


_TOKEN = re.compile(r"\bhf_[A-Za-z0-9_]{6,}")
_IN_ITS_PLACE = "$HF_TOKEN"
_START = r"(?:file:/*|~\w*|\.{1,2})?/"
# Not inside an address or a fraction, and up to what may end a path in a sentence.
_PATH = re.compile(rf"(?<![\w.:/~-]){_START}(?=[^\s/])[^\s'\"`,;()\[\]{{}}<>|]*")
_SECRET_FLAG = re.compile(r"--?[\w-]*token", re.IGNORECASE)
# Below these, the last part of a path is somebody's name.
_HOMES = ("home", "Users")


def discreet(value: Any) -> Any:
    """A copy of plain data in which texts hold no token and no local path; what is called "command" is read as one."""
    if isinstance(value, dict):
        return {
            discreet(key): discreet_command(one) if key == "command" and isinstance(one, str) else discreet(one)
            for key, one in value.items()
        }
    if isinstance(value, list | tuple):
        return [discreet(one) for one in value]
    return _text(value) if isinstance(value, str) else value


def discreet_command(command: str) -> str:
    """A command line without tokens, and with the last part of every local path."""
    try:
        words = shlex.split(command)
    except ValueError:
        return _text(command)
    # A shell would not look into quotes for the token.
    return shlex.join(_public_words(words)).replace(f"'{_IN_ITS_PLACE}'", _IN_ITS_PLACE)


def _public_words(words: list[str]) -> Iterator[str]:
    secret = False
    for word in words:
        flag, sign, value = word.partition("=")
        if secret:
            secret = False
        elif _SECRET_FLAG.fullmatch(flag):
            # Its value stands behind it, or behind the sign; both go.
            secret = not sign
        else:
            yield f"{flag}={_text(value)}" if sign else _text(word)


def _text(text: str) -> str:
    """A text that is a path as a whole, blanks in it or not, by its last part; else the paths in it by theirs."""
    is_path = re.match(_START, text) or (text.count("/") > 1 and not re.search(r"\s|://", text))
    text = _last_part(text) if is_path else _PATH.sub(lambda found: _last_part(found[0]), text)
    return _TOKEN.sub(_IN_ITS_PLACE, text)


def _last_part(path: str) -> str:
    parts = [part for part in path.split("/") if part not in ("", ".", "..", "~", "file:")]
    if len(parts) == 2 and parts[0] in _HOMES:
        return "home"
    return parts[-1] if parts else "folder"
