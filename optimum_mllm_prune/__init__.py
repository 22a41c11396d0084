"""Structural pruning of vision-language models into smaller, standard Hugging Face checkpoints."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__


if TYPE_CHECKING:
    from .configuration import PruningConfig
    from .errors import UserInputError
    from .planning import PruningPlan
    from .pruner import MLLMPruner
    from .recovery.arguments import RecoveryArguments
    from .recovery.teachers.cached import CachedTeacher
    from .recovery.trainer import RecoveryTrainer

# Imported on first use: optimum-cli reads this package on every call, and torch takes seconds.
_HOMES = {
    "CachedTeacher": "recovery.teachers.cached",
    "MLLMPruner": "pruner",
    "PruningConfig": "configuration",
    "PruningPlan": "planning",
    "RecoveryArguments": "recovery.arguments",
    "RecoveryTrainer": "recovery.trainer",
    "UserInputError": "errors",
}

__all__ = [
    "CachedTeacher",
    "MLLMPruner",
    "PruningConfig",
    "PruningPlan",
    "RecoveryArguments",
    "RecoveryTrainer",
    "UserInputError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
