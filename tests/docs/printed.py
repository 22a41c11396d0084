"""Code as it stands in the documentation, to be run as a reader would."""

import re
from pathlib import Path


ROOT = Path(__file__).parents[2]


def block(document: str, language: str, containing: str) -> str:
    """The one block of code of a document in a language that holds some words."""
    text = (ROOT / document).read_text(encoding="utf-8")
    found = [code for code in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL) if containing in code]
    assert len(found) == 1, f"{len(found)} blocks of {document} hold {containing!r}"
    return found[0]
