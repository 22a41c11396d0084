"""What an earlier pruning has made of the base model, when what is left of it is pruned once more."""

from collections.abc import Callable
from dataclasses import dataclass

from .backbone import Backbone
from .planning import PruningPlan


@dataclass(frozen=True)
class Earlier:
    """The first of two prunings.

    Attributes:
        backbone: of the base model.
        told: makes of the later plan one of both, in the numbers of the base model.
    """

    backbone: Backbone
    told: Callable[[PruningPlan], PruningPlan]

    def of_both(self, then: PruningPlan, after: int) -> tuple[PruningPlan, Backbone, int]:
        """The plan of both, the backbone it is of, and the bytes of the base model, `after` those that are left."""
        plan = self.told(then)
        return plan, self.backbone, round(after / plan.left)
