"""The rows of `digit_scenes.yaml`."""

import os
from typing import Any

from datasets import DatasetDict, load_from_disk


def load(**_: Any) -> DatasetDict:
    """Both splits, from the folder that the environment variable DIGIT_SCENES names.

    lm-eval also hands over the model's arguments, which rows do not depend on.

    Raises:
        FileNotFoundError: the variable is not set, or names no such folder.
    """
    folder = os.environ.get("DIGIT_SCENES")
    if not folder:
        raise FileNotFoundError("DIGIT_SCENES is not set: let it name the folder that scenes.py wrote.")
    return load_from_disk(folder)
