"""The model card: from a template, complete without hand work."""

import re
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData, hf_hub_download, metadata_load
from huggingface_hub.errors import HfHubHTTPError
from jinja2 import Environment, FunctionLoader, StrictUndefined

from ..importance import METRICS
from ..planning import PruningPlan
from ..quiet import quiet
from .discretion import discreet
from .report import PruningReport


CARD_NAME = "README.md"


def model_card(
    name: str,
    plan: PruningPlan,
    report: PruningReport,
    license: str | None,
    sizes: Sequence[tuple[str, int, int]],
    with_scores: bool = True,
    plot: str | None = None,
    has_processor: bool = True,
) -> ModelCard:
    """The card of a pruned checkpoint.

    Args:
        name: what the checkpoint is called.
        plan: what was removed.
        report: the figures.
        license: of the base model; None where it is not known.
        sizes: what the backbone is made of, in words, and how many of it there were and are.
        with_scores: whether the scores lie beside it.
        plot: name of the picture of the scores beside it; None where there is none.
        has_processor: whether a processor lies beside it.
    """
    base = discreet(plan.model.get("base_model"))
    data = ModelCardData(
        base_model=base,
        base_model_relation="finetune" if base else None,
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        license=license,
        tags=["optimum", "mllm-prune", "pruning", f"{plan.method}-pruning"],
    )
    metric = METRICS.get(plan.importance, {}).get(plan.method)
    body = rendered(
        "card.md.jinja",
        name=name,
        plan=asdict(plan),
        report=asdict(report),
        verification=asdict(report.verification),
        base=base,
        license=license,
        by_weights=metric is not None and metric.needs == "weights",
        dataset=plan.config.get("dataset"),
        seed=plan.config.get("seed", "not known"),
        sizes=sizes,
        with_scores=with_scores,
        plot=plot,
        has_processor=has_processor,
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}")


def rendered(template: str, **values: Any) -> str:
    """One of the templates beside this file, its values filled in without tokens and local paths.

    A value that is not given is an error. The filter `cell` makes a text fit into a table.
    """
    home = files(__package__)
    loader = FunctionLoader(lambda name: home.joinpath(name).read_text(encoding="utf-8"))
    environment = Environment(
        loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["cell"] = _cell
    return re.sub(r"\n{3,}", "\n\n", environment.get_template(template).render(**discreet(values)))


def license_of(model_id: str, **hub: Any) -> str | None:
    """License that the base model's own card states; None where there is no readable card.

    Args:
        model_id: Hub id or local folder.
        hub: `revision`, `token`, `cache_dir`.
    """
    folder = Path(model_id)
    try:
        with quiet():
            card = folder / CARD_NAME if folder.is_dir() else hf_hub_download(model_id, CARD_NAME, **hub)
            stated = (metadata_load(card) or {}).get("license")
    except (OSError, ValueError, HfHubHTTPError, yaml.YAMLError):
        return None
    return stated if isinstance(stated, str) else None


def _cell(value: Any) -> str:
    """On one line, and without what would end a cell or begin a tag."""
    return re.sub(r"([|<])", r"\\\1", " ".join(str(value).split()))
