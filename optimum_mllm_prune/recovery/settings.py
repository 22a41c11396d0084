"""RecoveryArguments from a YAML file, single settings and flags, in this order of precedence, the last one winning."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_utils import IntervalStrategy

from ..errors import UserInputError, first_line
from .arguments import RecoveryArguments
from .setting_types import of_its_type


# Said by the command itself: where it writes, and when.
_OWN = {"output_dir", "resume_from_checkpoint", "push_to_hub", "do_train", "do_eval", "do_predict"}


def recovery_arguments(
    output_dir: str | Path,
    config: str | Path | None,
    settings: Sequence[str],
    given: Mapping[str, Any],
    held_out: bool = False,
) -> RecoveryArguments:
    """The arguments of a recovery.

    Args:
        output_dir: folder of the training's checkpoints.
        config: YAML file with any key of RecoveryArguments.
        settings: KEY=VALUE, the values read as YAML.
        given: flags by key; None where one was not given.
        held_out: whether there are held-out rows; the loss is evaluated on them after every pass, unless asked
            otherwise.

    Raises:
        UserInputError: the file cannot be read, a key is unknown, a value is wrong, or there are no rows to evaluate
            on.
    """
    values = {**_from_file(config), **_from_settings(settings), **{k: v for k, v in given.items() if v is not None}}
    _check(values)
    # Nothing is reported to a tracker unless asked for.
    values = {"report_to": "none", "save_total_limit": 2, "eval_strategy": "epoch" if held_out else "no", **values}
    try:
        made = RecoveryArguments(output_dir=str(output_dir), **values)
        get_reporting_integration_callbacks(made.report_to)
    except UserInputError:
        raise
    except (ValueError, TypeError, ImportError, OSError) as error:
        said = " ".join(str(error).split())
        raise UserInputError(f"the training arguments do not fit together: {said}") from error
    _require_rows_to_evaluate(made, held_out)
    return made


def _require_rows_to_evaluate(args: RecoveryArguments, held_out: bool) -> None:
    evaluated = args.eval_strategy != IntervalStrategy.NO or args.eval_on_start
    if evaluated and not held_out:
        raise UserInputError(
            "eval_strategy and eval_on_start ask for held-out rows, and there are none: leave them out."
        )
    if held_out and not evaluated:
        raise UserInputError(
            "the held-out rows are not looked at with eval_strategy 'no': leave that or the rows out."
        )


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


def _check(values: dict[str, Any]) -> None:
    """Every key must be known; values are brought to their types."""
    known = {field.name for field in fields(RecoveryArguments) if field.init and field.name not in _OWN}
    # Not the types of the fields, which HfArgumentParser changes.
    declared = get_type_hints(RecoveryArguments)
    for key, value in list(values.items()):
        if key in _OWN:
            raise UserInputError(f"'{key}' is set by the command itself: leave it out.")
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else "see --help, or transformers' TrainingArguments."
            raise UserInputError(f"there is no training argument '{key}': {hint}")
        values[key] = of_its_type(key, value, declared[key])
