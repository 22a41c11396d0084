"""Sections of a card: the own one replaced, everything else as it was."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from optimum_mllm_prune.checkpoint.sections import ORDER, section_of, with_section


CARD = (
    "# name\n\nintro\n\n## What was removed\n\nfirst\n\n## By hand\n\n```bash\n## no heading\n```\n\n"
    "## Verification\n\nthird\n"
)
LINES = [
    "## Recovery",
    "## By hand ##",
    "  ## Limits",
    "    ## code",
    "text",
    "",
    "```",
    "````",
    "~~~",
    "``` ```",
    "##",
    "# title",
]


def test_a_section_is_replaced():
    assert with_section(CARD, "Verification", "new\n\n") == CARD.replace("third", "new")
    assert with_section(CARD, "What was removed", "new") == CARD.replace("first", "new")


@pytest.mark.parametrize("heading", ["How it was made", "Recovery", "Evaluation"])
def test_a_new_one_is_put_in_front_of_those_that_follow(heading):
    assert with_section(CARD, heading, "new") == CARD.replace("## Verif", f"## {heading}\n\nnew\n\n## Verif")


def test_a_new_one_goes_to_the_end_where_nothing_follows():
    assert with_section(CARD, "Citation", "new") == CARD + "\n## Citation\n\nnew\n"


@pytest.mark.parametrize("heading", ORDER)
def test_twice_is_once(heading):
    once = with_section(CARD, heading, "new")
    assert with_section(once, heading, "new") == once


def test_in_whichever_order_they_are_written_they_stand_in_theirs():
    for order in (ORDER, ORDER[::-1]):
        card = "# name\n"
        for heading in order:
            card = with_section(card, heading, heading.lower())
        assert [line[3:] for line in card.splitlines() if line.startswith("## ")] == list(ORDER)


def test_an_empty_card():
    assert with_section("", "Recovery", "new") == "## Recovery\n\nnew\n"


def test_one_section():
    assert section_of(CARD, "What was removed") == "## What was removed\n\nfirst\n\n"
    assert section_of(CARD, "Recovery") == section_of(CARD, "no heading") == ""


def headings(card):
    """Titles and headings of second level as a Markdown parser finds them."""
    tokens = MarkdownIt().parse(card)
    return [
        tokens[at + 1].content
        for at, token in enumerate(tokens)
        if token.type == "heading_open" and token.tag in ("h1", "h2")
    ]


@given(st.lists(st.sampled_from(LINES), max_size=12))
def test_what_stands_before_and_behind_stays(lines):
    card = "# name\n\n" + "\n\n".join(lines) + "\n"
    before = headings(card)
    # A code block that is left open swallows whatever is put behind it.
    assume(headings(card + "\n## end\n")[-1:] == ["end"])
    after = with_section(card, "Recovery", "new")
    assert section_of(after, "Recovery").rstrip() == "## Recovery\n\nnew"
    if "Recovery" in before:
        assert headings(after) == before
    else:
        assert [heading for heading in headings(after) if heading != "Recovery"] == before
