"""How good answers are."""

from collections.abc import Sequence


def exact_match(answers: Sequence[str], references: Sequence[str]) -> float:
    """Share of answers equal to their reference to the letter, in percent."""
    if not references:
        raise ValueError("there is no reference to compare with")
    return 100 * sum(a == r for a, r in zip(answers, references, strict=True)) / len(references)


def exact_match_by_group(answers: Sequence[str], references: Sequence[str], groups: Sequence[str]) -> dict[str, float]:
    """`exact_match` of each group of rows, in the order in which the groups first appear."""
    found = {}
    for group in dict.fromkeys(groups):
        inside = [i for i, other in enumerate(groups) if other == group]
        found[group] = exact_match([answers[i] for i in inside], [references[i] for i in inside])
    return found


def retained(after: float, before: float) -> float:
    """Share of a score that is left, in percent; NaN where there was none to lose."""
    return 100 * after / before if before else float("nan")
