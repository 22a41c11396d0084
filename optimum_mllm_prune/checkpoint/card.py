"""The model card: from a template, complete without hand work."""

from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import HFValidationError
from jinja2 import Environment, StrictUndefined

from ..importance import METRICS
from ..planning import PruningPlan
from .report import PruningReport


CARD_NAME = "README.md"


def model_card(name: str, plan: PruningPlan, report: PruningReport, license: str | None) -> ModelCard:
    """The card of a pruned checkpoint.

    Args:
        name: what the checkpoint is called.
        plan: what was removed.
        report: the figures.
        license: of the base model; None where it is not known.
    """
    base = plan.model.get("base_model")
    data = ModelCardData(
        base_model=base,
        base_model_relation="finetune" if base else None,
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        license=license,
        tags=["optimum", "mllm-prune", "pruning", f"{plan.method}-pruning"],
    )
    template = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    source = files(__package__).joinpath("card.md.jinja").read_text(encoding="utf-8")
    metric = METRICS.get(plan.importance, {}).get(plan.method)
    body = template.from_string(source).render(
        name=name,
        plan=asdict(plan),
        report=asdict(report),
        base=base,
        by_weights=metric is not None and metric.needs == "weights",
        dataset=plan.config.get("dataset"),
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}")


def license_of(model_id: str, **hub: Any) -> str | None:
    """License that the base model's own card states; None where there is no card or it cannot be fetched."""
    folder = Path(model_id)
    if folder.is_dir() and not (folder / CARD_NAME).is_file():
        return None
    try:
        return ModelCard.load(folder / CARD_NAME if folder.is_dir() else model_id, **hub).data.license
    except (OSError, ValueError, HfHubHTTPError, HFValidationError):
        return None
