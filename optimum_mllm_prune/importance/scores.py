"""Scores as data: by layer, kept in a safetensors file, so that another ratio needs no second calibration."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..backbone import Group
from ..errors import UserInputError


SCORES_NAME = "pruning_scores.safetensors"


@dataclass(frozen=True)
class Scores:
    """Importance of every removable part; higher is more important.

    Attributes:
        tensors: fp32 "layers" (layers,), "heads" (layers, units) and "channels" (layers, intermediate_size); a layer
            without such a block has NaN. Blocks outside the decoder, where there are any: "heads_outside" and
            "channels_outside" (blocks, units). Of method "hidden" also "hidden" (hidden_size,), and "projector"
            (blocks, hidden_size) where a projector's inner width is the hidden size as well, and of metric
            "activation" "hidden_energy" (norms, hidden_size), whose rows have mean 1.
        metrics: "layer", "width" and, where scored, "hidden" to the name of the metric that scored them.
        model: fingerprint of the architecture that was scored.
        left_out: kinds of units ("heads", "channels") that could not be scored, with the reason.
    """

    tensors: dict[str, Tensor]
    metrics: dict[str, str] = field(default_factory=dict)
    model: str = ""
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """sha256 over names, shapes and values."""
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

    def save(self, folder: Path) -> None:
        """Write `pruning_scores.safetensors`."""
        metadata = {"model": self.model}
        metadata |= {f"metric_{key}": value for key, value in self.metrics.items()}
        metadata |= {f"left_out_{kind}": reason for kind, reason in self.left_out.items()}
        save_file(self.tensors, folder / SCORES_NAME, metadata=metadata)

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
            tensors = load_file(file)
            with safe_open(file, framework="pt") as stored:
                metadata = stored.metadata() or {}
        except SafetensorError as error:
            raise UserInputError(f"the scores in '{file.name}' cannot be read ({error}): calibrate again.") from error
        return cls(tensors, _under("metric_", metadata), metadata.get("model", ""), _under("left_out_", metadata))


def _under(prefix: str, metadata: dict[str, str]) -> dict[str, str]:
    return {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}


def by_layer(group: Group, rows: Tensor, num_layers: int) -> dict[str, Tensor]:
    """Scores (sites, units) as tensors by layer, and those of blocks outside the decoder apart."""
    inside = torch.full((num_layers, group.units), float("nan"))
    outside = []
    for site, row in zip(group.sites, rows, strict=True):
        if site.layer is None:
            outside.append(row)
        else:
            inside[site.layer] = row
    found = {group.kind: inside}
    return found | ({f"{group.kind}_outside": torch.stack(outside)} if outside else {})
