"""What a pruned config says, and what that builds, worked out once."""

from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedConfig, PreTrainedModel

from .skeleton import count_backbone_parameters, count_parameters
from .text_config import NotExpressibleError


@dataclass(frozen=True)
class Sizes:
    """What a pruned config says. None leaves a key as it is.

    Attributes:
        kept_layers: ascending original indexes of the decoder layers that stay.
        heads: units of the `heads` group that stay in every layer.
        channels: MLP channels that stay in every layer.
        twin: declare the text backbone as its numerically identical twin.
        hidden: dimensions of the residual stream that stay, the same everywhere.
    """

    kept_layers: tuple[int, ...]
    heads: int | None = None
    channels: int | None = None
    twin: bool = False
    hidden: int | None = None


@dataclass(frozen=True)
class Expression:
    """What a config of some sizes builds.

    Attributes:
        config: as a reload will see it.
        parameters: distinct ones of the whole model.
        backbone_parameters: of decoder, token embeddings and head.
    """

    config: PreTrainedConfig
    parameters: int
    backbone_parameters: int


class Expressions:
    """Remembers of all sizes that were asked for what they build, and of which the config cannot say.

    Args:
        build: makes the model of some sizes without weights, or raises NotExpressibleError.
    """

    def __init__(self, build: Callable[[Sizes], PreTrainedModel]) -> None:
        self._build = build
        self._known: dict[Sizes, Expression | str] = {}

    def of(self, sizes: Sizes) -> Expression:
        """What these sizes build. Raises NotExpressibleError."""
        if sizes not in self._known:
            self._known[sizes] = self._worked_out(sizes)
        known = self._known[sizes]
        if isinstance(known, str):
            raise NotExpressibleError(known)
        return known

    def _worked_out(self, sizes: Sizes) -> Expression | str:
        try:
            model = self._build(sizes)
        except NotExpressibleError as error:
            return str(error)
        return Expression(model.config, count_parameters(model), count_backbone_parameters(model))
