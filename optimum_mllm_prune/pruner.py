"""`MLLMPruner`: from a model to a smaller one. Every stage has its own room; this is the way through them."""

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from .backbone import Backbone
from .calibration.batches import make_batch
from .calibration.processors import load_processor
from .calibration.rows import synthetic_row
from .checkpoint import (
    CARD_NAME,
    PruningReport,
    atomic_folder,
    check_output,
    environment,
    generation_is_consistent,
    license_of,
    model_card,
    peak_memory,
    reference_of,
    special_tokens,
    upload,
    verify,
    weight_bytes,
)
from .configuration import PruningConfig
from .errors import UserInputError
from .importance import Scores
from .importance.scoring import score
from .loading import commit_of, load_config, load_model, public_name
from .planning import PruningPlan, checked, make_plan
from .surgery import pruned_model


SHARD_SIZE = "5GB"


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
        self.model: PreTrainedModel | None = model.eval()
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
        config = self._with_origin(config, dataset)
        with self._timed("calibration"):
            backbone = self.backbone(config.head_unit)
            self.scores, self.calibration = score(self.model, self.processor, backbone, config, dataset)
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

    def check(self, plan: PruningPlan) -> PruningPlan:
        """A plan that was read from a file, perhaps edited: the same with its figures worked out anew.

        Raises:
            UserInputError: the plan does not fit the model.
        """
        return checked(plan, self._backbone_for(plan))

    def prune(self, plan: PruningPlan | PruningConfig, dataset: Any = None) -> PreTrainedModel:
        """Remove what the plan says and return the pruned model, which is also `self.model` from then on.

        The weights move over from the original model, which cannot be used afterwards (copy it before if you need it).

        Raises:
            UserInputError: the plan does not fit the model, or as in `plan`.
        """
        self._refuse_pruned()
        if isinstance(plan, PruningConfig):
            plan = self.plan(plan, dataset)
        plan = self.check(plan)
        with self._timed("surgery"):
            size = weight_bytes(self.model)
            generates = self._generation_can_be_checked()
            self.model = pruned_model(self.model, self._backbone_for(plan), plan)
            self._pruned = (plan, size, generates)
        return self.model

    def save_pretrained(
        self,
        output: str | Path,
        overwrite: bool = False,
        verification_inputs: Mapping[str, Tensor] | None = None,
        keep_model: bool = True,
    ) -> PruningReport:
        """Write checkpoint, processor, plan, scores, report and model card, and verify them; all or nothing.

        Args:
            output: folder; must not exist unless `overwrite`.
            overwrite: replace what is there, once the new checkpoint is complete.
            verification_inputs: batch on which the reloaded model is compared with the one in memory; by default an
                image of noise with a prompt, or text alone where there is no processor.
            keep_model: False frees `self.model` before the fresh process loads its copy, so that memory holds one.

        Returns:
            The report, as written to `pruning_report.json`.

        Raises:
            UserInputError: nothing was pruned yet, or the folder cannot be written.
            VerificationError: the saved checkpoint is not the model in memory; nothing is left behind.
        """
        if self._pruned is None or self.model is None:
            raise UserInputError("there is no pruned model to save: call prune before save_pretrained.")
        plan, before, generates = self._pruned
        after, machine = weight_bytes(self.model), environment(self.model)
        output = check_output(output, overwrite, after)
        with self._timed("reference"):
            reference = reference_of(self.model, dict(verification_inputs or self._default_inputs()), generates)
        with atomic_folder(output) as folder:
            with self._timed("saving"):
                self._write(folder, plan)
            if not keep_model:
                self.model = None
            with self._timed("verification"):
                verification = verify(folder, reference, self.processor is not None)
            report = PruningReport(
                parameters=plan.parameters,
                ratio=plan.ratio,
                size_bytes={"before": before, "after": after},
                notes=plan.notes,
                verification=verification,
                timings_seconds={stage: round(seconds, 3) for stage, seconds in self.timings.items()},
                peak_memory_bytes=peak_memory(),
                calibration=self.calibration,
                environment=machine,
            )
            report.save(folder)
            model_card(output.name, plan, report, self._license()).save(folder / CARD_NAME)
        return report

    def push_to_hub(self, repo_id: str, private: bool | None = None, token: str | None = None) -> str:
        """Save, verify and upload to the Hub in one commit; returns the address of the commit."""
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / repo_id.rpartition("/")[2]
            self.save_pretrained(folder)
            return upload(folder, repo_id, private, token)

    def _with_origin(self, config: PruningConfig, dataset: Any) -> PruningConfig:
        """The config with what is known of model and data written into it, local paths left out."""
        local = self.base_model is None or Path(self.base_model).exists()
        config = PruningConfig.from_dict(config.to_dict())
        config.base_model = None if local else self.base_model
        config.base_model_revision = None if local else self.base_model_revision
        if dataset is not None and config.dataset is None:
            config.dataset = str(dataset) if isinstance(dataset, (str, Path)) else "rows in memory"
        if config.dataset is not None:
            config.dataset = public_name(config.dataset)
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
            ids = torch.randint(vocabulary // 2, vocabulary, (1, 64), generator=torch.Generator().manual_seed(0))
            # An image token would ask for an image.
            ids = ids[~torch.isin(ids, torch.tensor(special_tokens(self.model.config)))][:8].unsqueeze(0)
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        batch = make_batch(self.processor, [synthetic_row()]).to("cpu", self.model.dtype)
        return {name: value for name, value in batch.inputs.items() if isinstance(value, Tensor)}

    def _write(self, folder: Path, plan: PruningPlan) -> None:
        self.model.save_pretrained(folder, max_shard_size=SHARD_SIZE)
        if self.processor is not None:
            self.processor.save_pretrained(folder)
        PruningConfig.from_dict(plan.config).save_pretrained(folder)
        plan.save(folder)
        if self.scores is not None:
            self.scores.save(folder)

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
