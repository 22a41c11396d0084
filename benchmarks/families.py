"""What each architecture's config can express, as a table: the small random models of the tests, probed.

python benchmarks/families.py
"""

import math
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from families import FAMILIES

from optimum_mllm_prune.backbone import Backbone, ConfigRejectedError, NotExpressibleError, Sizes, model_class_of
from optimum_mllm_prune.backbone.text_config import text_config


def heads(backbone: Backbone) -> str:
    """What heads can go, in words."""
    try:
        group, choices = backbone.heads, backbone.head_choices
    except NotExpressibleError as error:
        return f"no: {error}"
    own = [n for n, twin in choices.items() if not twin]
    twins = " (any number as its twin, mistral)" if any(choices.values()) else ""
    every = (
        "any number" if len(own) == group.units // group.stride - 1 else f"{', '.join(map(str, own))} of {group.units}"
    )
    return f"{group.unit}s: {every}{twins}"


def hidden(backbone: Backbone) -> str:
    """What hidden sizes there can be."""
    try:
        size = backbone.hidden.size
    except NotExpressibleError as error:
        return f"no: {error}"
    step = math.gcd(*(n for n in range(1, size) if _is_accepted(backbone, n)))
    return "any number" if step == 1 else f"multiples of {step}"


def _is_accepted(backbone: Backbone, size: int) -> bool:
    try:
        backbone.config_for(Sizes(tuple(range(backbone.num_layers)), hidden=size))
    except ConfigRejectedError:
        return False
    return True


def channels(backbone: Backbone) -> str:
    """Whether MLP channels can go."""
    try:
        sites = backbone.channels.sites
    except NotExpressibleError as error:
        return f"no: {error}"
    outside = sum(site.layer is None for site in sites)
    return "yes" + (f", and {outside} block outside the decoder with them" if outside else "")


def main() -> None:
    """Print the table."""
    print(
        "| model type | language backbone | layers | heads | MLP channels | hidden size |\n|---|---|---|---|---|---|"
    )
    rows: dict[str, None] = {}
    for family in FAMILIES.values():
        config = family.config()
        backbone = Backbone(model_class_of(config), config)
        protected = f"all but {sorted(backbone.protected_layers)}" if backbone.protected_layers else "yes"
        cells = (config.model_type, text_config(config).model_type, protected, heads(backbone), channels(backbone))
        cells += (hidden(backbone),)
        rows["| " + " | ".join(cells) + " |"] = None
    print("\n".join(rows))


if __name__ == "__main__":
    main()
