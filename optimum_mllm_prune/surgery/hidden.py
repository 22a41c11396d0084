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

from ..backbone import Hidden
from ..calibration.engine import evaluating
from ..errors import UserInputError, first_line
from ..planning import PruningPlan


# Of the size of the logits. Rounding gives 1e-5 in float32 and 2e-2 in bfloat16 at most (measured on the models of the
# tests).
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_HALF_TOLERANCE = 5e-2


@torch.no_grad()
def expected_logits(
    model: PreTrainedModel, fresh: PreTrainedModel, plan: PruningPlan, hidden: Hidden, tokens: Tensor
) -> Tensor:
    """Logits (1, tokens, vocabulary) of the original, its norms replaced by those of the pruned model.

    Args:
        model: the original, with its weights.
        fresh: the pruned architecture, still without weights; its norms get theirs.
        plan: what is removed.
        hidden: the residual stream of the original.
        tokens: ids (1, tokens) of text.
    """
    kept = torch.tensor([i for i in range(hidden.size) if i not in set(plan.removed_hidden)])
    with evaluating(model), _narrow_norms(model, fresh, hidden, kept):
        return model(input_ids=tokens).logits.float().cpu()


@torch.no_grad()
def refuse_other_logits(pruned: PreTrainedModel, tokens: Tensor, expected: Tensor) -> None:
    """Raise UserInputError where the pruned model computes something else, or nothing."""
    try:
        found = pruned(input_ids=tokens.to(pruned.device)).logits.float().cpu()
    except RuntimeError as error:
        raise UserInputError(
            f"with this hidden size the model does not run ({first_line(error)}): ask for another ratio."
        ) from error
    difference = float((found - expected).norm() / expected.norm())
    if not difference <= _TOLERANCE.get(pruned.dtype, _HALF_TOLERANCE):
        raise UserInputError(
            f"with a smaller hidden size this architecture computes something else (logits differ by {difference:.2g} "
            "of their size): use method 'width' or 'layer'."
        )


@contextmanager
def _narrow_norms(model: PreTrainedModel, fresh: PreTrainedModel, hidden: Hidden, kept: Tensor) -> Iterator[None]:
    handles = []
    try:
        for name in hidden.norms:
            module, narrow = model.get_submodule(name), fresh.get_submodule(name)
            for leaf, parameter in module.named_parameters():
                own = parameter.detach().index_select(0, kept.to(parameter.device))
                narrow._parameters[leaf] = nn.Parameter(own, requires_grad=False)
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
