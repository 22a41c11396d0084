"""Scores as data: by layer, kept in a safetensors file, so that another ratio needs no second calibration."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..backbone import Group
from ..calibration.batches import MODALITIES, weight_of_each
from ..errors import UserInputError
from .observer import Statistics
from .registry import METRICS
from .runs import RUNS


SCORES_NAME = "pruning_scores.safetensors"
# Of method "hidden".
_NOT_WEIGHTED = ("hidden", "hidden_energy", "projector")


@dataclass(frozen=True)
class Scores:
    """Importance of every removable part; higher is more important.

    Attributes:
        tensors: fp32 "layers" (layers,), "heads" (layers, units) and "channels" (layers, intermediate_size); a layer
            without such a block has NaN. Blocks outside the decoder, where there are any: "heads_outside" and
            "channels_outside" (blocks, units). Of a metric that scores runs of layers also "layer_runs" (layers,
            layers), whose entry [l, n - 1] is of the n layers from l on, NaN where there are not so many. Of method
            "hidden" also "hidden" (hidden_size,), and "projector" (blocks, hidden_size) where a projector's inner
            width is the hidden size as well, and of metric "activation" "hidden_energy" (norms, hidden_size), whose
            rows have mean 1.
        metrics: "layer", "width" and, where scored, "hidden" to the name of the metric that scored them.
        model: fingerprint of the architecture that was scored.
        left_out: kinds of units ("heads", "channels") that could not be scored, with the reason.
        statistics: what scores of other weights follow from, named as the tensor and what it is ("channels.squares"):
            fp64 (layers, 3, ...), sums over image, over prompt and over answer tokens.
        modality_weights: how much tokens count in `tensors`, by "image", "prompt" and "answer"; None is all alike.
    """

    tensors: dict[str, Tensor]
    metrics: dict[str, str] = field(default_factory=dict)
    model: str = ""
    left_out: dict[str, str] = field(default_factory=dict)
    statistics: dict[str, Tensor] = field(default_factory=dict)
    modality_weights: dict[str, float] | None = None

    @property
    def fingerprint(self) -> str:
        """sha256 over names, shapes and values of the scores."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def of(self, group: Group) -> Tensor:
        """fp32 (sites, units): one row for each site of the group, in its order.

        Raises:
            UserInputError: there are none of this kind, or they are of other units.
        """
        layers = [site.layer for site in group.sites if site.layer is not None]
        found = [self.tensors.get(group.kind, torch.empty(0, 0)), self.tensors.get(f"{group.kind}_outside")]
        if len(found[0]) <= max(layers, default=0) or any(t is not None and t.ndim != 2 for t in found):
            raise UserInputError(f"the scores hold no {group.kind} of every layer: calibrate again.")
        rows = [*found[0][layers], *(() if found[1] is None else found[1])]
        if len(rows) != len(group.sites) or any(len(row) != group.units for row in rows):
            raise UserInputError(
                f"the scores are of {len(rows[0])} {group.kind} in each of {len(rows)} blocks, the plan is of "
                f"{group.units} ({group.unit}s) in {len(group.sites)}: take the head unit they were made with, or "
                "calibrate again."
            )
        return torch.stack(rows)

    def of_layers(self, num_layers: int) -> Tensor:
        """fp32 (layers,). Raises UserInputError where there are none, or another number of them."""
        found = self.tensors.get("layers")
        if found is None or tuple(found.shape) != (num_layers,):
            raise UserInputError(f"the scores hold no score for each of {num_layers} layers: calibrate again.")
        return found

    def of_runs(self, num_layers: int) -> Tensor:
        """fp32 (layers, layers), see `tensors`. Raises UserInputError where there are none, or of another depth."""
        found = self.tensors.get(RUNS)
        if found is None or tuple(found.shape) != (num_layers, num_layers):
            raise UserInputError(f"the scores hold no score for each run of {num_layers} layers: calibrate again.")
        return found

    def weighted(self, weights: Mapping[str, float] | None) -> "Scores":
        """The same where tokens count differently: exactly what a calibration with these weights would give.

        Scores of metrics that keep no tokens apart stay as they are.

        Args:
            weights: by "image", "prompt" and "answer", 1 where not named; None is all alike.

        Raises:
            UserInputError: the statistics are not there, or some layer has none of the tokens that count.
        """
        if weights == self.modality_weights:
            return self
        vector = _vector(weights)
        tensors = {name: self._weighted(name, scores, vector) for name, scores in self.tensors.items()}
        return replace(self, tensors=tensors, modality_weights=weights and dict(weights))

    def _weighted(self, name: str, scores: Tensor, weights: Tensor) -> Tensor:
        method = "layer" if name in ("layers", RUNS) else "width"
        metric = METRICS.get(self.metrics.get(method), {}).get(method)
        if metric is None or not metric.weighs_tokens or name in _NOT_WEIGHTED:
            return scores
        statistics: Statistics = _under(f"{name}.", self.statistics)
        if not statistics:
            raise UserInputError("the scores were made before tokens were kept apart by modality: calibrate again.")
        found, alike = (
            metric.create.combined(statistics, one, scores.shape[-1]).float() for one in (weights, _vector(None))
        )
        silent = ((found == 0).all(dim=-1) & (alike != 0).any(dim=-1)).reshape(-1)
        if silent.any():
            block = "block" if name.endswith("_outside") else "layer"
            where = "" if name == "layers" else f" of {block} {int(silent.nonzero()[0])}"
            raise UserInputError(
                f"tokens of these modality_weights tell nothing of the {name}{where}: give others a weight as well."
            )
        return found

    def save(self, folder: Path) -> None:
        """Write `pruning_scores.safetensors`."""
        metadata = {"model": self.model}
        metadata |= {f"metric_{key}": value for key, value in self.metrics.items()}
        metadata |= {f"left_out_{kind}": reason for kind, reason in self.left_out.items()}
        metadata["modality_weights"] = json.dumps(self.modality_weights)
        save_file(self.tensors | self.statistics, folder / SCORES_NAME, metadata=metadata)

    @classmethod
    def load(cls, path: str | Path) -> "Scores":
        """Read scores from a file, or from the folder that holds `pruning_scores.safetensors`.

        Raises:
            UserInputError: there are no scores, or the file is damaged.
        """
        path = Path(path)
        file = path / SCORES_NAME if path.is_dir() else path
        if not file.is_file():
            raise UserInputError(f"no scores at '{path}': give a {SCORES_NAME} or the folder that holds it.")
        try:
            found = load_file(file)
            with safe_open(file, framework="pt") as stored:
                metadata = stored.metadata() or {}
            weights = json.loads(metadata.get("modality_weights", "null"))
        except (SafetensorError, json.JSONDecodeError) as error:
            raise UserInputError(f"the scores in '{file.name}' cannot be read ({error}): calibrate again.") from error
        return cls(
            {name: tensor for name, tensor in found.items() if "." not in name},
            _under("metric_", metadata),
            metadata.get("model", ""),
            _under("left_out_", metadata),
            {name: tensor for name, tensor in found.items() if "." in name},
            weights,
        )


def _under(prefix: str, values: dict[str, Any]) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}


def _vector(weights: Mapping[str, float] | None) -> Tensor:
    """Of `MODALITIES`, fp64 (3,)."""
    return weight_of_each(weights)[list(MODALITIES)]


def by_layer(group: Group, rows: Tensor, num_layers: int) -> dict[str, Tensor]:
    """Scores (sites, units), or statistics of sites, as tensors by layer; of blocks outside the decoder apart."""
    inside = rows.new_full((num_layers, *rows.shape[1:]), float("nan"))
    outside = []
    for site, row in zip(group.sites, rows, strict=True):
        if site.layer is None:
            outside.append(row)
        else:
            inside[site.layer] = row
    found = {group.kind: inside}
    return found | ({f"{group.kind}_outside": torch.stack(outside)} if outside else {})
