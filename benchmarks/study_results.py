"""What the runs of `recovery_study.py` have given, read from their files."""

import json
import statistics
from pathlib import Path
from typing import Any

from optimum_mllm_prune.evaluation import retained


# Peak learning rates: of adapters and projector, and of training in full.
RATE, FULL_RATE = 1e-3, 2e-4


class Results:
    """All finished runs of a folder.

    Attributes:
        settings: of the study.
        runs: one dict a run, as its file has it, with `retained` in percent of the original's exact match.
        original: the original's exact match in percent.
        speed, stability, guessing: what is measured once; empty where it is not there yet.
    """

    def __init__(self, folder: Path) -> None:
        read = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
        self.settings: dict[str, Any] = read.pop("settings")
        self.speed: list[dict] = read.pop("speed", [])
        self.stability: list[dict] = read.pop("stability", [])
        self.guessing: dict[str, Any] = read.pop("guessing", {})
        self.runs: list[dict] = list(read.values())
        self.original = next((run["exact_match"] for run in self.runs if run["method"] == "original"), 100.0)
        for run in self.runs:
            run["retained"] = retained(run["exact_match"], self.original)
        if self.guessing:
            self.guessing["retained"] = retained(self.guessing["exact_match"], self.original)
        self._by_key = {self._key(run): run["retained"] for run in self.runs if run["rate"] in (RATE, FULL_RATE)}

    def __len__(self) -> int:
        return len(self.runs)

    @staticmethod
    def _key(run: dict) -> tuple:
        return run["method"], run["ratio"], run["recipe"], run["share"], run["seed"]

    def by_seed(self, method: str, ratio: float, recipe: str, share: float = 1.0) -> dict[int, float]:
        """Seed to what is retained."""
        found = {s: self._by_key.get((method, ratio, recipe, share, s)) for s in range(self.settings["seeds"])}
        return {seed: value for seed, value in found.items() if value is not None}

    def mean(self, method: str, ratio: float, recipe: str, share: float = 1.0) -> float | None:
        """Mean over seeds; None where nothing has run."""
        found = self.by_seed(method, ratio, recipe, share)
        return statistics.mean(found.values()) if found else None

    def gain(self, one: tuple, other: tuple) -> float | None:
        """How much more the first of two (method, ratio, recipe[, share]) retains: mean over the seeds of both."""
        first, second = self.by_seed(*one), self.by_seed(*other)
        common = sorted(first.keys() & second.keys())
        return statistics.mean(first[seed] - second[seed] for seed in common) if common else None

    def by_rate(self) -> dict[float, float]:
        """Learning rate to what is retained, of the one cell where several were tried."""
        cell = ("layer", 0.3, "sft", 1.0, 0)
        found = {run["rate"]: run["retained"] for run in self.runs if self._key(run) == cell}
        return dict(sorted(found.items())) if len(found) > 1 else {}

    def achieved(self, method: str, ratio: float) -> float | None:
        """The share of the backbone that is removed, of seed 0."""
        found = [r["achieved"] for r in self.runs if (r["method"], r["ratio"], r["seed"]) == (method, ratio, 0)]
        return found[0] if found else None
