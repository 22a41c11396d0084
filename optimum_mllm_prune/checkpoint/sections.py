"""A card's sections by heading, so that a later stage replaces its own and leaves the rest as it is."""

import re
from itertools import pairwise


# The sections of a card that are written by stages, as they stand in it.
ORDER = (
    "How to load it",
    "What was removed",
    "How it was made",
    "Recovery",
    "Evaluation",
    "Verification",
    "Limits and intended use",
    "License",
    "Citation",
)
# Backticks behind the opening ones make it code within a line.
_FENCE = re.compile(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})")
_HEADING = re.compile(r" {0,3}(##?)(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$")


def with_section(card: str, heading: str, body: str) -> str:
    """The card with one section of second level replaced, or put in where there was none.

    Args:
        card: markdown with `## ` headings.
        heading: of the section, one of `ORDER`; a new one is put in front of the first that follows it there, at the
            end where none does.
        body: its text, without the heading.
    """
    section = f"## {heading}\n\n{body.strip()}\n\n"
    spans = _spans(card)
    followers = [spans[name][0] for name in ORDER[ORDER.index(heading) + 1 :] if name in spans]
    start, end = spans.get(heading) or (min(followers, default=len(card)),) * 2
    lead = card[:start] if not start or card[:start].endswith("\n\n") else card[:start].rstrip("\n") + "\n\n"
    return (lead + section + card[end:]).rstrip("\n") + "\n"


def section_of(card: str, heading: str) -> str:
    """A section's text with its heading; empty where there is none."""
    start, end = _spans(card).get(heading, (0, 0))
    return card[start:end]


def _spans(card: str) -> dict[str, tuple[int, int]]:
    """Where each section starts, with its heading, and where it ends; code blocks hold no heading."""
    starts, fence, position = [], "", 0
    for line in card.splitlines(keepends=True):
        found = _FENCE.match(line)
        if fence:
            closes = found and found[1].startswith(fence) and line.strip() == found[1]
            fence = "" if closes else fence
        elif found:
            fence = found[1]
        elif heading := _HEADING.match(line.rstrip("\n")):
            # A title ends a section too.
            starts.append(((heading[2] or "") if heading[1] == "##" else "", position))
        position += len(line)
    spans = [(name, (start, end)) for (name, start), (_, end) in pairwise([*starts, ("", len(card))])]
    # Of two sections of one name the first counts.
    return dict(reversed(spans))
