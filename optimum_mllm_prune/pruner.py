"""`MLLMPruner`: from a model to a smaller one. Every stage has its own room; this is the way through them."""

import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import ceil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from optimum.utils import logging
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from .backbone import Backbone, Group, with_layouts
from .calibration.batches import Modality, batches, make_batch
from .calibration.engine import run_calibration
from .calibration.processors import load_processor
from .calibration.rows import load_rows, synthetic_row
from .checkpoint import (
    PruningReport,
    Verification,
    atomic_folder,
    check_output,
    environment,
    generation_is_consistent,
    license_of,
    model_card,
    peak_memory,
    reference_of,
    verify,
    weight_bytes,
)
from .configuration import PruningConfig
from .errors import UserInputError
from .importance import METRICS, Observer, Scores, Subject, by_layer, companion
from .loading import commit_of, load_config, load_model, public_name
from .planning import PruningPlan, fingerprint, make_plan
from .surgery import pruned_model


logger = logging.get_logger("optimum.mllm_prune.pruner")

DEFAULT_DATASET = "HuggingFaceH4/llava-instruct-mix-vsft"
DEFAULT_BATCH_SIZE = 8


class MLLMPruner:
    """Prunes the language backbone of a vision-language model in memory.

    Args:
        model: any decoder-only vision-language model of transformers. `prune` takes its weights over: afterwards
            only `pruner.model` can be used.
        processor: its processor; needed for calibration on rows, saved with the checkpoint.
        base_model: Hub id or folder the model came from; a Hub id is written into the card.
        base_model_revision: its commit.

    Raises:
        UserInputError: the model has no decoder that can be pruned.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin | None = None,
        base_model: str | None = None,
        base_model_revision: str | None = None,
    ) -> None:
        self.model = model.eval()
        self.processor = processor
        self.base_model = base_model
        self.base_model_revision = base_model_revision
        self.scores: Scores | None = None
        self.calibration: dict[str, Any] | None = None
        self.timings: dict[str, float] = {}
        self._backbones: dict[str, Backbone] = {}
        self._pruned: tuple[PruningPlan, int, bool] | None = None
        self.backbone()

    @classmethod
    def from_pretrained(
        cls,
        model_id: str,
        dtype: str | torch.dtype = "auto",
        device: str | None = None,
        device_map: Any = None,
        **hub: Any,
    ) -> "MLLMPruner":
        """Load model and processor from the Hub or a folder.

        Args:
            model_id: Hub id or local folder.
            dtype: number format of the weights; "auto" as saved.
            device: where to put the whole model; by default the first GPU, else the CPU.
            device_map: how to spread it instead, as in `from_pretrained`.
            hub: `revision`, `token`, `cache_dir`, `trust_remote_code`.

        Raises:
            UserInputError: there is no such model, it is damaged, or it is not a vision-language model.
        """
        start = time.perf_counter()
        config = load_config(model_id, **hub)
        processor = load_processor(model_id, **hub)
        model = load_model(model_id, config, dtype, device, device_map, **hub)
        pruner = cls(model, processor, model_id, commit_of(config))
        pruner.timings["load"] = time.perf_counter() - start
        return pruner

    def backbone(self, head_unit: str = "auto") -> Backbone:
        """What the language model is made of; `head_unit` as in `PruningConfig`."""
        if head_unit not in self._backbones:
            self._backbones[head_unit] = Backbone.of(self.model, head_unit)
        return self._backbones[head_unit]

    def score(self, config: PruningConfig, dataset: Any = None) -> Scores:
        """Importance of every removable part; kept in `self.scores`. Touches no weight.

        Args:
            config: names the metric, the number of rows and the seed.
            dataset: rows, a data set, a folder, a file or a Hub id; needed where the metric looks at data.

        Raises:
            UserInputError: the data cannot be used, or there is no processor.
        """
        self._refuse_pruned()
        with self._timed("calibration"):
            backbone = self.backbone(config.head_unit)
            groups = [with_layouts(group, self.model) for group in backbone.groups()[0]]
            subject = Subject(self.model, backbone.layers_prefix, tuple(groups), config.seed)
            metrics = {
                config.method: config.importance,
                _other(config.method): companion(config.method, config.importance),
            }
            observers = [METRICS[name][method].create(subject) for method, name in metrics.items()]
            self.calibration = self._calibrate(config, dataset, observers, subject)
            self.scores = Scores(_gathered(observers, groups, backbone), metrics, fingerprint(backbone))
        return self.scores

    def plan(self, config: PruningConfig, dataset: Any = None, scores: Scores | None = None) -> PruningPlan:
        """What to remove. Touches no weight.

        Args:
            config: what is wanted.
            dataset: as in `score`.
            scores: of an earlier calibration; then no data is needed.

        Raises:
            UserInputError: the wish cannot be met, or the data or scores cannot be used.
        """
        backbone = self.backbone(config.head_unit)
        config = self._with_origin(config, dataset)
        if scores is None:
            scores = self.score(config, dataset)
        self.scores = scores
        with self._timed("planning"):
            return make_plan(backbone, config, scores)

    def prune(self, plan: PruningPlan | PruningConfig, dataset: Any = None) -> PreTrainedModel:
        """Remove what the plan says and return the pruned model, which is also `self.model` from then on.

        The weights move over from the original model, which cannot be used afterwards (copy it before if you need it).

        Raises:
            UserInputError: the plan does not fit the model, or as in `plan`.
        """
        self._refuse_pruned()
        if isinstance(plan, PruningConfig):
            plan = self.plan(plan, dataset)
        with self._timed("surgery"):
            size = weight_bytes(self.model)
            generates = self._generation_can_be_checked()
            self.model = pruned_model(self.model, self._backbone_for(plan), plan)
            self._pruned = (plan, size, generates)
        return self.model

    def save_pretrained(
        self, output: str | Path, overwrite: bool = False, verification_inputs: Mapping[str, Tensor] | None = None
    ) -> PruningReport:
        """Write checkpoint, processor, plan, scores, report and model card, and verify them; all or nothing.

        Args:
            output: folder; must not exist unless `overwrite`.
            overwrite: replace what is there, once the new checkpoint is complete.
            verification_inputs: batch on which the reloaded model is compared with the one in memory; by default an
                image of noise with a prompt, or text alone where there is no processor.

        Returns:
            The report, as written to `pruning_report.json`.

        Raises:
            UserInputError: nothing was pruned yet, or the folder cannot be written.
            VerificationError: the saved checkpoint is not the model in memory; nothing is left behind.
        """
        if self._pruned is None:
            raise UserInputError("nothing was pruned yet: call prune before save_pretrained.")
        plan, size, generates = self._pruned
        output = check_output(output, overwrite, weight_bytes(self.model))
        inputs = dict(verification_inputs) if verification_inputs else self._default_inputs()
        reference = reference_of(self.model, inputs, generates)
        with atomic_folder(output) as folder:
            with self._timed("saving"):
                self._write(folder, plan)
            with self._timed("verification"):
                verification = verify(folder, self.model, reference, self.processor is not None)
            report = self._report(plan, size, verification)
            report.save(folder)
            model_card(output.name, plan, report, self._license()).save(folder / "README.md")
        return report

    def push_to_hub(self, repo_id: str, private: bool | None = None, token: str | None = None) -> str:
        """Save, verify and upload to the Hub in one commit; returns the address of the commit."""
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / repo_id.rpartition("/")[2]
            self.save_pretrained(folder)
            return upload(folder, repo_id, private, token)

    def _calibrate(
        self, config: PruningConfig, dataset: Any, observers: Sequence[Observer], subject: Subject
    ) -> dict[str, Any] | None:
        metric = METRICS[config.importance][config.method]
        if metric.needs == "weights":
            return None
        if self.processor is None:
            raise UserInputError(
                f"importance '{config.importance}' needs a processor to read rows: give MLLMPruner one."
            )
        if dataset is None:
            raise UserInputError(
                f"importance '{config.importance}' needs calibration rows: give a dataset, or use 'magnitude_l2'."
            )
        rows = load_rows(dataset, config.dataset_split, config.num_samples or metric.samples, config.seed)
        size = config.batch_size or (len(rows) if metric.one_batch else DEFAULT_BATCH_SIZE)
        counts: Counter[str] = Counter()
        run_calibration(
            self.model,
            _counted(batches(self.processor, rows, size), counts),
            observers,
            subject.layers,
            backward=metric.needs == "backward",
            total=ceil(len(rows) / size),
            gradient_checkpointing=config.gradient_checkpointing,
        )
        return {
            "dataset": config.dataset,
            "split": config.dataset_split,
            "samples": len(rows),
            "batch_size": size,
            "tokens": dict(counts),
            "seed": config.seed,
            "importance": config.importance,
        }

    def _with_origin(self, config: PruningConfig, dataset: Any) -> PruningConfig:
        """The config with what is known of model and data written into it, local paths left out."""
        local = self.base_model is None or Path(self.base_model).exists()
        config = PruningConfig.from_dict(config.to_dict())
        config.base_model = None if local else self.base_model
        config.base_model_revision = None if local else self.base_model_revision
        if dataset is not None and config.dataset is None:
            config.dataset = public_name(str(dataset)) if isinstance(dataset, (str, Path)) else "rows in memory"
        return config

    def _backbone_for(self, plan: PruningPlan) -> Backbone:
        return self.backbone("query" if plan.head_unit == "query" else "auto")

    def _generation_can_be_checked(self) -> bool:
        """Whether the original generates the same with and without a cache.

        Taken for granted with images; without a processor the check is on text, where some models differ by nature.
        """
        return self.processor is not None or generation_is_consistent(self.model, self._default_inputs())

    def _default_inputs(self) -> dict[str, Tensor]:
        if self.processor is None:
            vocabulary = self.model.get_input_embeddings().weight.shape[0]
            ids = torch.randint(vocabulary // 2, vocabulary, (1, 8), generator=torch.Generator().manual_seed(0))
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        batch = make_batch(self.processor, [synthetic_row()]).to("cpu", self.model.dtype)
        return {name: value for name, value in batch.inputs.items() if isinstance(value, Tensor)}

    def _write(self, folder: Path, plan: PruningPlan) -> None:
        self.model.save_pretrained(folder)
        if self.processor is not None:
            self.processor.save_pretrained(folder)
        PruningConfig.from_dict(plan.config).save_pretrained(folder)
        plan.save(folder)
        if self.scores is not None:
            self.scores.save(folder)

    def _report(self, plan: PruningPlan, size_before: int, verification: Verification) -> PruningReport:
        return PruningReport(
            parameters=plan.parameters,
            ratio=plan.ratio,
            size_bytes={"before": size_before, "after": weight_bytes(self.model)},
            notes=plan.notes,
            verification=verification,
            timings_seconds={stage: round(seconds, 3) for stage, seconds in self.timings.items()},
            peak_memory_bytes=peak_memory(),
            calibration=self.calibration,
            environment=environment(self.model),
        )

    def _license(self) -> str | None:
        return license_of(self.base_model) if self.base_model else None

    def _refuse_pruned(self) -> None:
        if self._pruned is not None:
            raise UserInputError("this model was pruned already: make a new MLLMPruner to prune it again.")

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.timings[stage] = self.timings.get(stage, 0.0) + time.perf_counter() - start


def upload(folder: Path, repo_id: str, private: bool | None = None, token: str | None = None) -> str:
    """Upload a finished folder to the Hub in one commit; returns the commit's address."""
    api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    return api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Pruned checkpoint").commit_url


def _other(method: str) -> str:
    return "width" if method == "layer" else "layer"


def _gathered(observers: Sequence[Observer], groups: Sequence[Group], backbone: Backbone) -> dict[str, Tensor]:
    by_kind = {group.kind: group for group in groups}
    tensors = {}
    for observer in observers:
        for kind, rows in observer.scores().items():
            tensors |= {kind: rows} if kind == "layers" else by_layer(by_kind[kind], rows, backbone.num_layers)
    return tensors


def _counted(made: Iterator[Any], counts: Counter) -> Iterator[Any]:
    """Count real tokens by modality on the way."""
    for batch in made:
        for modality in (Modality.IMAGE, Modality.PROMPT, Modality.ANSWER):
            counts[modality.name.lower()] += int((batch.modality == modality).sum())
        yield batch
