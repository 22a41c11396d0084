"""RecoveryArguments from a YAML file, single settings and flags, in this order of precedence, the last one winning."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from ..errors import UserInputError, first_line
from .arguments import RecoveryArguments


# Said by the command itself: where it writes, and when.
_OWN = {"output_dir", "resume_from_checkpoint", "push_to_hub", "do_train", "do_eval", "do_predict"}


def recovery_arguments(
    output_dir: str | Path, config: str | Path | None, settings: Sequence[str], given: Mapping[str, Any]
) -> RecoveryArguments:
    """The arguments of a recovery.

    Args:
        output_dir: folder of the training's checkpoints.
        config: YAML file with any key of RecoveryArguments.
        settings: KEY=VALUE, the values read as YAML.
        given: flags by key; None where one was not given.

    Raises:
        UserInputError: the file cannot be read, a key is unknown, or a value is wrong.
    """
    values = {**_from_file(config), **_from_settings(settings), **{k: v for k, v in given.items() if v is not None}}
    _check_keys(values)
    # Nothing is reported to a tracker unless asked for.
    values = {"report_to": "none", "save_total_limit": 2, **values}
    try:
        return RecoveryArguments(output_dir=str(output_dir), **values)
    except UserInputError:
        raise
    except (ValueError, TypeError, ImportError) as error:
        raise UserInputError(f"the training arguments do not fit together: {first_line(error)}") from error


def _from_file(config: str | Path | None) -> dict[str, Any]:
    if config is None:
        return {}
    try:
        found = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        name = Path(config).name
        raise UserInputError(f"the config '{name}' cannot be read ({first_line(error)}): give a YAML file.") from error
    if not isinstance(found, dict):
        name = Path(config).name
        raise UserInputError(f"the config '{name}' holds no keys: write lines such as learning_rate: 1e-4.")
    return found


def _from_settings(settings: Sequence[str]) -> dict[str, Any]:
    found = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise UserInputError(f"'{setting}' is no setting: write KEY=VALUE, such as learning_rate=1e-4.")
        found[key.strip().replace("-", "_")] = _value(setting, value)
    return found


def _value(setting: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserInputError(f"the value of '{setting}' cannot be read: write it as YAML would have it.") from None


def _check_keys(values: Mapping[str, Any]) -> None:
    known = {field.name: field for field in fields(RecoveryArguments) if field.init and field.name not in _OWN}
    for key, value in values.items():
        if key in _OWN:
            raise UserInputError(f"'{key}' is set by the command itself: leave it out.")
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else "see --help, or transformers' TrainingArguments."
            raise UserInputError(f"there is no training argument '{key}': {hint}")
        # YAML reads 1e-4 as a text.
        if isinstance(value, str) and "float" in str(known[key].type):
            values[key] = _number(key, value)


def _number(key: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserInputError(f"'{key}' must be a number, got '{text}'.") from None
