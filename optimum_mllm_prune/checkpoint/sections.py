"""A card's sections by heading, so that a later stage replaces its own and leaves the rest as it is."""

import re


def with_section(card: str, heading: str, body: str, before: str) -> str:
    """The card with one section of second level replaced, or put in where there was none.

    Args:
        card: markdown with `## ` headings.
        heading: of the section.
        body: its text, without the heading.
        before: heading of the section that a new one is put in front of; at the end where that is absent too.
    """
    section = f"## {heading}\n\n{body.strip()}\n\n"
    found = _span(card, heading)
    if found is None:
        follower = _span(card, before)
        at = len(card) if follower is None else follower[0]
        found = (at, at)
    start, end = found
    lead = card[:start] if not start or card[:start].endswith("\n\n") else card[:start].rstrip("\n") + "\n\n"
    return (lead + section + card[end:]).rstrip("\n") + "\n"


def _span(card: str, heading: str) -> tuple[int, int] | None:
    """Where a section starts, with its heading, and where the next one of its level does; code blocks hold none."""
    starts, fenced, position = [], False, 0
    for line in card.splitlines(keepends=True):
        fenced ^= line.startswith("```")
        if not fenced and re.match(r"## ", line):
            starts.append((line[3:].strip(), position))
        position += len(line)
    for number, (name, start) in enumerate(starts):
        if name == heading:
            return start, starts[number + 1][1] if number + 1 < len(starts) else len(card)
    return None
