"""The paper's statements (arXiv 2507.20749, 2604.24380), each with a rule by which the results decide.

The rules were written down before the grid ran. A statement is a list of comparisons: it holds when all of
them come out as it says, does not hold when none does, and holds partly otherwise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from study_results import Results


# Points of retained exact match; 560 rows near 90 % have a standard error of 1.3 points, the difference of two 1.8.
MARGIN = 2.0
FAR = 10.0
FEW_SHARE = 93.0
STABLE_RANKS, STABLE_SETS = 0.9, 90.0
LORA_MIXES = ("sft", "kd", "reverse kd", "hidden", "sft+kd", "sft+hidden", "sft+hidden+kd")


@dataclass(frozen=True)
class Comparison:
    """One figure, and whether it is as the statement says."""

    figure: str
    true: bool


@dataclass(frozen=True)
class Statement:
    """What the paper says, the rule, and the comparisons that the results allow."""

    name: str
    text: str
    rule: str
    compare: Callable[[Results], list[Comparison]]

    def verdict(self, comparisons: Sequence[Comparison]) -> str:
        """In words."""
        true = sum(comparison.true for comparison in comparisons)
        if not comparisons:
            return "not measured"
        return "holds" if true == len(comparisons) else "partly" if true else "does not hold"


def line(statement: Statement, results: Results) -> str:
    """A row of the table of verdicts."""
    found = statement.compare(results)
    figures = ", ".join(comparison.figure if comparison.true else f"*{comparison.figure}*" for comparison in found)
    count = f" ({sum(c.true for c in found)} of {len(found)})" if found else ""
    verdict = f"**{statement.verdict(found)}**{count}"
    return f"| {statement.name} | {statement.text} | {statement.rule} | {verdict} | {figures} |"


def _gains(results: Results, pairs: Sequence[tuple[str, tuple, tuple]], true: Callable) -> list[Comparison]:
    found = [(name, results.gain(one, other)) for name, one, other in pairs]
    return [Comparison(f"{name}: {gain:+.1f}", true(gain)) for name, gain in found if gain is not None]


def _cells(results: Results, ratios: Sequence[float]) -> list[tuple[str, str, float]]:
    methods, wanted = results.settings["methods"], set(results.settings["ratios"])
    return [(f"{m} {100 * r:.0f} %", m, r) for r in ratios if r in wanted for m in methods]


def _methods(results: Results, recipe: str, ratios: Sequence[float], true: Callable) -> list[Comparison]:
    pairs = [(f"{100 * r:.0f} %", ("width", r, recipe), ("layer", r, recipe)) for r in ratios]
    return _gains(results, pairs, true)


def _recipes(results: Results, one: str, other: str, ratios: Sequence[float], true: Callable) -> list[Comparison]:
    pairs = [(f"{name}, {one}", (m, r, one), (m, r, other)) for name, m, r in _cells(results, ratios)]
    return _gains(results, pairs, true)


def _projector(results: Results) -> list[Comparison]:
    near = _recipes(results, "projector", "sft+hidden", [0.15], lambda gain: gain >= -MARGIN)
    return near + _recipes(results, "projector", "sft+hidden", [0.6], lambda gain: gain < -FAR)


def _distillation(results: Results) -> list[Comparison]:
    recipes = ("kd", "reverse kd", "hidden")
    return [c for one in recipes for c in _recipes(results, one, "sft", [0.3, 0.45, 0.6], lambda gain: gain < -MARGIN)]


def _best_mix(results: Results) -> list[Comparison]:
    found = []
    for name, method, ratio in _cells(results, [0.15, 0.3, 0.45, 0.6]):
        pairs = [(mix, (method, ratio, "sft+hidden"), (method, ratio, mix)) for mix in LORA_MIXES]
        behind = [(gain, mix) for mix, *pair in pairs if (gain := results.gain(*pair)) is not None]
        if len(behind) > 1:
            gain, mix = min(behind)
            found.append(Comparison(f"{name} to the best ({mix}): {gain:+.1f}", gain >= -MARGIN))
    pairs = [(f"{n} to sft", (m, r, "sft+hidden"), (m, r, "sft")) for n, m, r in _cells(results, [0.6])]
    return found + _gains(results, pairs, lambda gain: gain > MARGIN)


def _few_data(results: Results) -> list[Comparison]:
    found = []
    for name, method, ratio in _cells(results, [0.15, 0.3, 0.45]):
        few, full = (results.mean(method, ratio, "sft+hidden", share) for share in (0.05, 1.0))
        if few is not None and full is not None:
            found.append(Comparison(f"{name}: {100 * few / full:.1f} %", 100 * few / full >= FEW_SHARE))
    return found


def _speed(results: Results) -> list[Comparison]:
    seconds = {(entry["method"], entry["ratio"]): entry["seconds_per_row"] for entry in results.speed}
    whole = seconds.get(("original", 0.0))
    return [
        Comparison(f"{100 * r:.0f} %: {whole / layer:.2f}x and {whole / width:.2f}x", layer < width)
        for r in results.settings["ratios"]
        if (layer := seconds.get(("layer", r))) and (width := seconds.get(("width", r)))
    ]


def _stability(results: Results) -> list[Comparison]:
    enough = {"layers": 5, "heads": 10, "channels": 10}
    found = []
    for entry in results.stability:
        if entry["samples"] == enough[entry["kind"]]:
            name, ranks, sets = entry["kind"], entry["rank_correlation"], entry["overlap"]
            found.append(Comparison(f"{name}: ranks {ranks:.2f}", ranks >= STABLE_RANKS))
            found.append(Comparison(f"{name}: sets {sets:.0f} %", sets >= STABLE_SETS))
    return found


STATEMENTS = [
    Statement(
        "S1",
        "without training, at 15 and 30 %, width beats layers",
        f"width - layers, none, more than {MARGIN:g} points",
        lambda results: _methods(results, "none", [0.15, 0.3], lambda gain: gain > MARGIN),
    ),
    Statement(
        "S4",
        "with SFT, up to 30 %, layers are at least as good as width",
        f"width - layers, sft, at most {MARGIN:g} points",
        lambda results: _methods(results, "sft", [0.15, 0.3], lambda gain: gain <= MARGIN),
    ),
    Statement(
        "S5",
        "with SFT, from 45 %, width wins",
        f"width - layers, sft, more than {MARGIN:g} points",
        lambda results: _methods(results, "sft", [0.45, 0.6], lambda gain: gain > MARGIN),
    ),
    Statement(
        "S6",
        "at 15 %, the projector alone is within about 2 points of projector and backbone; at 60 % it is far behind",
        f"projector - lora, sft+hidden: at least -{MARGIN:g} points at 15 %, below -{FAR:g} at 60 %",
        _projector,
    ),
    Statement(
        "S7",
        "distillation without cross entropy falls behind SFT from 30 %",
        f"kd, reverse kd, hidden - sft: below -{MARGIN:g} points",
        _distillation,
    ),
    Statement(
        "S8",
        "SFT + hidden states is the best mix or near it, most clearly at 60 %",
        f"at most {MARGIN:g} points behind the best of seven losses; at 60 %, more than {MARGIN:g} above sft",
        _best_mix,
    ),
    Statement(
        "S9",
        "5 % of the data reaches 93 % of the full-data result up to 45 %",
        f"sft+hidden: 5 % / 100 % of the rows at least {FEW_SHARE:g} %",
        _few_data,
    ),
    Statement(
        "S11",
        "at equal ratio, layers are faster than width",
        "speed-up of layers above that of width (layers and width, CPU, 16 prompts and 16 tokens)",
        _speed,
    ),
    Statement(
        "S12",
        "scores are stable from 5 (layers) or 10 (width) calibration rows",
        f"between seeds: rank correlation at least {STABLE_RANKS:g}, removed sets {STABLE_SETS:g} % the same at 30 %",
        _stability,
    ),
]
