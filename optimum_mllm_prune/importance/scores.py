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
            "channels_outside" (blocks, units).
        metrics: "layer" and "width" to the name of the metric that scored them.
        model: fingerprint of the architecture that was scored.
    """

    tensors: dict[str, Tensor]
    metrics: dict[str, str] = field(default_factory=dict)
    model: str = ""

    @property
    def fingerprint(self) -> str:
        """sha256 over names, shapes and values."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def of(self, group: Group) -> Tensor:
        """fp32 (sites, units): one row for each site of the group, in its order."""
        inside = [self.tensors[group.kind][site.layer] for site in group.sites if site.layer is not None]
        return torch.stack([*inside, *self.tensors.get(f"{group.kind}_outside", ())])

    def save(self, folder: Path) -> None:
        """Write `pruning_scores.safetensors`."""
        metadata = {"model": self.model, **{f"metric_{key}": value for key, value in self.metrics.items()}}
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
        metrics = {k.removeprefix("metric_"): v for k, v in metadata.items() if k.startswith("metric_")}
        return cls(tensors, metrics, metadata.get("model", ""))


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
