"""The folder beside the output that holds a training's checkpoints until it is finished."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.trainer_utils import get_last_checkpoint

from ..errors import UserInputError, note_kept


STATE_NAME = "recovery_run.json"


class TrainingFolder:
    """`OUTPUT.training`: kept until the result is complete, so that the same command goes on where it was broken off.

    Args:
        output: the folder of the result.
    """

    def __init__(self, output: Path) -> None:
        # Of "." and ".." the folder that they stand for; of others as it was given, because it is shown.
        named = output if output.name.strip(".") else output.resolve()
        self.path = named.parent / f"{named.name}.training"

    @contextmanager
    def claimed(self, run: dict[str, Any]) -> Iterator[str | None]:
        """Inside, a run trains in the folder; gives its last checkpoint, or None where it starts anew.

        A run that fails before it has any checkpoint leaves no folder behind.

        Args:
            run: all that decides what the training does, as JSON can hold it.

        Raises:
            UserInputError: it holds another run, or cannot be written.
        """
        self._claim(run)
        try:
            yield get_last_checkpoint(str(self.path))
        except BaseException as error:
            if get_last_checkpoint(str(self.path)) is None:
                self.remove()
            else:
                note_kept(error, f"the checkpoints in '{self.path}' are kept: the same command goes on from there")
            raise

    def remove(self) -> None:
        """Delete it, once the result stands."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _claim(self, run: dict[str, Any]) -> None:
        own = fingerprint(run)
        state = self.path / STATE_NAME
        if state.is_file() and json.loads(state.read_text(encoding="utf-8")).get("fingerprint") != own:
            raise UserInputError(
                f"'{self.path}' holds a broken-off training of other settings: finish that one, or delete the folder."
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            partial = state.with_name(f"{STATE_NAME}.{os.getpid()}")
            partial.write_text(json.dumps({"fingerprint": own}) + "\n", encoding="utf-8")
            partial.replace(state)
        except OSError as error:
            raise UserInputError(
                f"'{self.path}' cannot be written ({error.strerror}): choose another output."
            ) from error
        self._drop_unfinished()

    def _drop_unfinished(self) -> None:
        """Delete checkpoints that a kill cut short: Trainer writes its state last."""
        for folder in self.path.glob("checkpoint-*"):
            if not (folder / "trainer_state.json").is_file():
                shutil.rmtree(folder)


def fingerprint(described: dict[str, Any]) -> str:
    """sha256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()
