"""A plan becomes a new config, sliced weights and a model rebuilt from them."""

from .rebuild import pruned_model


__all__ = ["pruned_model"]
