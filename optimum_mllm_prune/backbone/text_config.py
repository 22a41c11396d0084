"""The text part of a config: where it stands, what it says, and edited copies as a reload will see them."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig


TextEdit = Callable[[dict[str, Any]], dict[str, Any]]


class ConfigRejectedError(Exception):
    """The architecture's own config class refuses these values; the message is its reason, in one line."""


class NotExpressibleError(Exception):
    """The architecture's config cannot say what is wanted; the message is the reason, in one line."""


def text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config of the decoder: a sub-config of `config`, or `config` itself when it is flat."""
    return config.get_text_config(decoder=True)


def text_path(config: PreTrainedConfig) -> tuple[str, ...]:
    """Attribute names that lead from `config` to its text config; empty when the config is flat."""
    target = text_config(config)
    return next(path for path, sub in _sub_configs(config, ()) if sub is target)


def text_value(config: PreTrainedConfig, key: str) -> Any:
    """Value of `key` under transformers' standard name; None where the text config has no such key.

    Raises:
        NotExpressibleError: each layer has a value of its own (`per_layer_config`).
    """
    text = text_config(config)
    if text.attribute_map.get(key, key) in (text.per_layer_attributes or ()):
        raise NotExpressibleError(f"its {key} differs between layers")
    return getattr(text, key, None)


def edited(
    config: PreTrainedConfig,
    changes: Mapping[str, Any],
    edit: TextEdit | None = None,
    outer: Mapping[str, Any] | None = None,
) -> PreTrainedConfig:
    """Copy of `config` with `changes` (standard key to value) in its text part, as a reload from JSON will see it.

    Args:
        config: the config to start from; left as it is.
        changes: keys of the text config; mapped through `attribute_map` to the architecture's own names.
        edit: applied to the text part, a dict, after `changes`.
        outer: values of keys that stand beside the text part.

    Raises:
        ConfigRejectedError: the config class does not accept the values.
    """
    # Every value, defaults included: another text model type has other defaults.
    whole = _as_dict(config.to_json_string(use_diff=False)) | dict(outer or {})
    _replace_text_part(whole, config, changes, edit)
    try:
        once = type(config).from_dict(whole)
        return type(config).from_dict(_as_dict(once.to_json_string(use_diff=True)))
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, StrictDataclassError) as error:
        # A validator's message is wrapped; its last line is the reason, behind the name of the exception.
        reason = str(error).strip().splitlines()[-1].strip().removeprefix("ValueError: ")
        raise ConfigRejectedError(reason) from error


def _as_dict(text: str) -> dict[str, Any]:
    """The dict that JSON text stands for; transformers writes infinity as {"__float__": "Infinity"}."""
    return json.loads(
        text, object_hook=lambda found: float(found["__float__"]) if found.keys() == {"__float__"} else found
    )


def _replace_text_part(
    whole: dict[str, Any], config: PreTrainedConfig, changes: Mapping[str, Any], edit: TextEdit | None
) -> None:
    part = whole
    for name in text_path(config):
        part = part[name]
    names = text_config(config).attribute_map
    part.update({names.get(key, key): value for key, value in changes.items()})
    if edit is not None:
        replacement = edit(dict(part))
        part.clear()
        part.update(replacement)


def _sub_configs(
    config: PreTrainedConfig, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], PreTrainedConfig]]:
    yield path, config
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            yield from _sub_configs(value, (*path, name))
