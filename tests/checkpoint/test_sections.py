"""Sections of a card: the own one replaced, everything else as it was."""

import pytest

from optimum_mllm_prune.checkpoint.sections import with_section


CARD = "# name\n\nintro\n\n## One\n\nfirst\n\n## Two\n\n```bash\n## no heading\n```\n\n## Three\n\nthird\n"


def test_a_section_is_replaced():
    assert with_section(CARD, "Two", "new\n\n", before="Three") == (
        "# name\n\nintro\n\n## One\n\nfirst\n\n## Two\n\nnew\n\n## Three\n\nthird\n"
    )


def test_a_new_one_is_put_in_front():
    assert with_section(CARD, "Half", "new", before="Two") == CARD.replace("## Two", "## Half\n\nnew\n\n## Two")


def test_a_new_one_goes_to_the_end_where_nothing_follows():
    assert with_section(CARD, "Four", "new", before="Five") == CARD + "\n## Four\n\nnew\n"


@pytest.mark.parametrize("heading", ["One", "Two", "Three", "Four"])
def test_twice_is_once(heading):
    once = with_section(CARD, heading, "new", before="Five")
    assert with_section(once, heading, "new", before="Five") == once


def test_a_heading_inside_a_code_block_is_none():
    assert with_section(CARD, "no heading", "new", before="Five").count("## no heading") == 2


def test_an_empty_card():
    assert with_section("", "One", "new", before="Two") == "## One\n\nnew\n"
