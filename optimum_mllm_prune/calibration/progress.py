"""What a calibration that is not finished has found so far, in a file: the next one of the same goes on from there."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import UserInputError
from .engine import Attachable


# Seconds from one writing to the next.
EVERY = 30.0

Found = Mapping[str, Tensor]


class Progress:
    """Tensors of each stage of a calibration, the last ones that were kept.

    Args:
        file: where they are kept; None keeps nothing.
        identity: of all that decides what is found; what is there of another is not looked at.
    """

    def __init__(self, file: Path | None = None, identity: str = "") -> None:
        self.file, self.identity = file, identity
        self._stages = _read(file, identity) if file else {}
        self._begun = self._written = time.monotonic()

    def of(self, stage: str) -> Found | None:
        """What was kept of a stage."""
        return self._stages.get(stage)

    def keep(self, stage: str, found: Callable[[], Found], finished: bool = False) -> None:
        """Remember what a stage has found, if it took some time to find; what is finished, even soon after the rest.

        Args:
            stage: its name.
            found: gives it, and is asked only then: it may have to be fetched from disk.
            finished: whether that is all.

        Raises:
            UserInputError: the file cannot be written.
        """
        since = self._begun if finished else self._written
        if self.file is None or time.monotonic() - since < EVERY:
            return
        others = {name: kept for name, kept in self._stages.items() if name != stage}
        written = others | {stage: {n: tensor.detach().cpu().contiguous() for n, tensor in found().items()}}
        tensors = {f"{name}/{n}": tensor for name, kept in written.items() for n, tensor in kept.items()}
        partial = partial_of(self.file)
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, partial, metadata={"identity": self.identity})
            partial.replace(self.file)
        except (OSError, SafetensorError) as error:
            raise UserInputError(f"'{self.file}' cannot be written ({error}): choose another output.") from error
        self._written = time.monotonic()
        # What is not finished is written anew, and may be large.
        self._stages = written if finished else others


def partial_of(file: Path) -> Path:
    """What is being written, to become the file once it is whole; a killed process leaves it behind."""
    return file.with_name(f"{file.name}.partial")


def state_of(observers: Sequence[Attachable]) -> dict[str, Tensor]:
    """The accumulators of all observers, by name."""
    return {f"{i}.{j}": tensor for i, one in enumerate(observers) for j, tensor in enumerate(one.accumulators())}


def restore(observers: Sequence[Attachable], found: Found) -> None:
    """Put accumulators back that were kept."""
    for name, tensor in state_of(observers).items():
        tensor.copy_(found[name])


def _read(file: Path, identity: str) -> dict[str, Found]:
    """Nothing where there is no such file, a damaged one, or one of another calibration."""
    stages: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(file, "pt") as opened:
            if (opened.metadata() or {}).get("identity") != identity:
                return {}
        for key, tensor in load_file(file).items():
            stage, _, name = key.partition("/")
            stages.setdefault(stage, {})[name] = tensor
    except (OSError, SafetensorError):
        return {}
    return stages
