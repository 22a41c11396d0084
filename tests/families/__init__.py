"""Small random vision-language models, built from configs without a network, for tests of pruning.

Each family is a config and a batch of inputs made by hand (some processors need packages that tests must not need).
The sizes are chosen to catch mistakes rather than to look alike: head_dim differs from hidden // heads wherever the
config has such a key, and in some families the vision tower is as deep (and its MLP as wide) as the text decoder.
"""

from families import catalogue, further
from families.family import Family, greedy, head_choices, randomise, reload


FAMILIES: dict[str, Family] = {family.name: family for source in (catalogue, further) for family in source.families()}

__all__ = ["FAMILIES", "Family", "greedy", "head_choices", "randomise", "reload"]
