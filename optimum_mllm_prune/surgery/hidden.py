"""The check of a narrower residual stream: the pruned model computes what the original does on what stays of it.

Shapes tell which axes go, but not whether the code uses the hidden size as a number as well. So one forward pass over
four text tokens is compared with the original whose norms look at the dimensions that stay and at no others: then
nothing reads those that go.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..backbone import Hidden, plain_tokens, scale_gain
from ..calibration.engine import evaluating
from ..errors import UserInputError, first_line
from ..planning import PruningPlan
from .scales import embedding_scale, restore_embedding_scale


# Of the size of the logits. Rounding gives at most 3e-6 in float32 and 0.05 in bfloat16 (measured on the models of the
# tests), and more the more layers there are.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_HALF_TOLERANCE = 0.2


class Narrowing:
    """What is asked of the original before its tensors are taken, and of the pruned model once it has them.

    Args:
        model: the original, with its weights.
        hidden: its residual stream.

    Raises:
        NotExpressibleError: it has no four token embeddings to be checked on.
    """

    def __init__(self, model: PreTrainedModel, hidden: Hidden) -> None:
        self.hidden = hidden
        self.tokens = plain_tokens(model)
        self.scale = embedding_scale(model) if hidden.final_norm else None
        self.expected: Tensor | None = None
        self.factors: dict[str, float] = {}

    @torch.no_grad()
    def foresee(self, model: PreTrainedModel, fresh: PreTrainedModel, plan: PruningPlan) -> None:
        """Note the logits (1, 4, vocabulary) of the original, its norms replaced by those of the pruned model.

        Args:
            model: the original.
            fresh: the pruned architecture, still without weights; its norms get theirs.
            plan: what is removed.
        """
        kept = torch.tensor(plan.kept_hidden(self.hidden.size))
        self.factors = plan.norm_factors
        with evaluating(model), self._narrow_norms(model, fresh, kept):
            self.expected = model(input_ids=self.tokens).logits.float().cpu()

    @torch.no_grad()
    def finish(self, pruned: PreTrainedModel) -> None:
        """Set the scales right. Raises UserInputError where the logits are other ones."""
        for name, factor in self.factors.items():
            scale_gain(pruned.get_submodule(name), factor)
        if self.scale is not None:
            restore_embedding_scale(pruned, self.hidden, self.scale)
        try:
            found = pruned(input_ids=self.tokens.to(pruned.device)).logits.float().cpu()
        except RuntimeError as error:
            raise UserInputError(
                f"with this hidden size the model does not run ({first_line(error)}): ask for another ratio."
            ) from error
        difference = float((found - self.expected).norm() / self.expected.norm())
        if not difference <= _TOLERANCE.get(pruned.dtype, _HALF_TOLERANCE):
            raise UserInputError(
                f"with a smaller hidden size this architecture computes something else (logits differ by "
                f"{difference:.2g} of their size): use method 'width' or 'layer'."
            )

    @contextmanager
    def _narrow_norms(self, model: PreTrainedModel, fresh: PreTrainedModel, kept: Tensor) -> Iterator[None]:
        handles = []
        try:
            for name in self.hidden.norms:
                module, narrow = model.get_submodule(name), fresh.get_submodule(name)
                for leaf, parameter in module.named_parameters():
                    own = parameter.detach().index_select(0, kept.to(parameter.device))
                    narrow._parameters[leaf] = nn.Parameter(own, requires_grad=False)
                if name in self.factors:
                    scale_gain(narrow, self.factors[name])
                handles.append(module.register_forward_hook(_over(kept, narrow), with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()


def _over(kept: Tensor, narrow: nn.Module) -> Callable[[nn.Module, tuple, dict, Tensor], Tensor]:
    """A hook that puts in the place of a norm's output that of a narrower norm, and zeros elsewhere."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        states = (args[0] if args else next(iter(kwargs.values()))).to(output.device)
        places = kept.to(output.device)
        return torch.zeros_like(output).index_copy(
            -1, places, narrow(states.index_select(-1, places)).to(output.dtype)
        )

    return hook
