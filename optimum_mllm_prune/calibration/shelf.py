"""Tensors that are wanted again: so many bytes of them stay where they are, the rest waits in files."""

import errno
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

import torch
from accelerate.utils import load_offloaded_weight, offload_weight
from torch import Tensor

from ..errors import UserInputError


class Shelf:
    """Tensors by name. What comes when the room is taken goes into a temporary folder, which is removed with it.

    Args:
        room: bytes that may be kept on the devices that the tensors are on.
    """

    def __init__(self, room: float) -> None:
        self.room = room
        self._here: dict[str, Tensor] = {}
        self._away: dict[str, tuple[torch.device, dict[str, Any]]] = {}
        self._folder: TemporaryDirectory | None = None

    def put(self, name: str, tensor: Tensor) -> None:
        """Keep a tensor, without its history, in place of another one of that name.

        Raises:
            UserInputError: the disk is full.
        """
        self.drop(name)
        tensor = tensor.detach()
        if self.bytes_here + tensor.nbytes <= self.room:
            self._here[name] = tensor
            return
        try:
            index = offload_weight(tensor.contiguous(), name, self._files, {})
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise UserInputError(
                f"'{gettempdir()}' is full, where calibration keeps what does not fit into memory: set TMPDIR to a "
                "folder with more space, or give fewer rows."
            ) from error
        self._away[name] = (tensor.device, index[name])

    def get(self, name: str) -> Tensor:
        """The tensor of that name, on the device that it was on; KeyError where there is none."""
        if name in self._here:
            return self._here[name]
        device, told = self._away[name]
        return load_offloaded_weight(self._files / f"{name}.dat", told).to(device)

    def drop(self, name: str) -> None:
        """Keep nothing of that name any more."""
        self._here.pop(name, None)
        if self._away.pop(name, None) is not None:
            (self._files / f"{name}.dat").unlink()

    def __contains__(self, name: str) -> bool:
        return name in self._here or name in self._away

    @property
    def bytes_here(self) -> int:
        """Of the tensors that are not in files."""
        return sum(tensor.nbytes for tensor in self._here.values())

    @property
    def _files(self) -> Path:
        if self._folder is None:
            self._folder = TemporaryDirectory(prefix="mllm-prune-", ignore_cleanup_errors=True)
        return Path(self._folder.name)
