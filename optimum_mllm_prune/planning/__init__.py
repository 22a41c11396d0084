"""Budget to selection to plan: plain data, checked against the config."""

from .plan import PLAN_NAME, PruningPlan
from .planner import Account, account, checked, make_plan


__all__ = ["PLAN_NAME", "Account", "PruningPlan", "account", "checked", "make_plan"]
