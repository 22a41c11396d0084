"""`MLLMPruner`: from a model to a smaller one. Every stage has its own room; this is the way through them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from .backbone import Backbone, is_offloaded, refuse_quantized
from .calibration.processors import load_processor
from .checkpoint import (
    PruningReport,
    atomic_folder,
    check_output,
    environment,
    free_memory,
    fresh_process,
    generation_can_be_compared,
    license_of,
    product_rate,
    reference_of,
    save_and_upload,
    trial_inputs,
    verify,
    weight_bytes,
    write_checkpoint,
)
from .checkpoint.record import write_record
from .configuration import PruningConfig
from .earlier import Earlier
from .errors import UserInputError
from .importance import Scores
from .importance.scoring import score
from .loading import commit_of, load_config, with_origin
from .number_formats import as_saved, load_to_work_on, rounded
from .planning import PruningPlan, checked, make_plan
from .repair import Merge, Repair, repair, rows_to_repair
from .steps import stepwise_plan
from .surgery import pruned_model
from .timings import Timings


class MLLMPruner:
    """Prunes the language backbone of a vision-language model in memory.

    Args:
        model: any decoder-only vision-language model of transformers. `prune` takes its weights over: afterwards
            only `pruner.model` can be used.
        processor: its processor; needed for calibration on rows, saved with the checkpoint.
        base_model: Hub id or folder the model came from; a Hub id is written into the card.
        base_model_revision, base_model_license: its commit, and its license as the Hub names it, for the card.

    Attributes:
        resume_file: where a long calibration keeps what it has found so far, to go on from; None keeps nothing.

    Raises:
        UserInputError: the model has no decoder that can be pruned.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin | None = None,
        base_model: str | None = None,
        base_model_revision: str | None = None,
        base_model_license: str | None = None,
    ) -> None:
        self.model: PreTrainedModel | None = model.eval()
        self.processor, self.base_model = processor, base_model
        self.base_model_revision, self.base_model_license = base_model_revision, base_model_license
        self.scores: Scores | None = None
        self.calibration: dict[str, Any] | None = None
        self.repair: Repair | Merge | None = None
        self.earlier: Earlier | None = None
        self.resume_file: Path | None = None
        self.timings = Timings()
        self._saved_dtype: torch.dtype | None = None
        self._backbones: dict[str, Backbone] = {}
        self._calibrated: dict[str, tuple[Scores, dict[str, Any] | None]] = {}
        self._pruned: tuple[PruningPlan, int, bool] | None = None
        self.backbone()

    @classmethod
    def from_pretrained(
        cls,
        model_id: str,
        dtype: str | torch.dtype = "auto",
        device: str | None = None,
        device_map: Any = None,
        max_memory: int | str | None = None,
        quantization: str | None = None,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | None = None,
    ) -> "MLLMPruner":
        """Load model and processor from the Hub or a folder. No code from there is run.

        Args:
            model_id: Hub id or local folder.
            dtype: number format of the weights; "auto" as saved, on a CPU that is slow with it float32 until they are
                saved.
            device, device_map: where to put it whole, by default on the first GPU, else the CPU; or how to spread it.
            max_memory: bytes, or "6GB", to take; by default what is free. Layers beyond it stay on disk, pruned there.
            quantization: "8bit" or "4bit": held so by bitsandbytes, it can be scored and planned for, not pruned.
            revision, token, cache_dir: branch, tag or commit; for a private or gated model; folder of downloads.

        Raises:
            UserInputError: there is no such model, it is damaged, or it is not a vision-language model.
        """
        hub, timings = {"revision": revision, "token": token, "cache_dir": cache_dir}, Timings()
        with timings.of("load"):
            config, processor = load_config(model_id, **hub), load_processor(model_id, **hub)
            commit, license = commit_of(model_id, **hub), license_of(model_id, **hub)
            loaded = load_to_work_on(model_id, config, dtype, device, device_map, max_memory, quantization, **hub)
            pruner = cls(loaded[0], processor, model_id, commit, license)
        pruner.timings, pruner._saved_dtype = timings, loaded[1]
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
        config = with_origin(config, self.base_model, self.base_model_revision, dataset)
        with self.timings.of("calibration"):
            backbone = self.backbone(config.head_unit)
            self._keep(*score(self.model, self.processor, backbone, config, dataset, self.resume_file))
        return self.scores

    def plan(self, config: PruningConfig, dataset: Any = None, scores: Scores | None = None) -> PruningPlan:
        """What to remove. Touches no weight.

        Args:
            config: what is wanted.
            dataset: as in `score`.
            scores: of an earlier calibration; then no data is needed, and tokens are weighted anew as `config` says.

        Raises:
            UserInputError: the wish cannot be met, or the data or scores cannot be used.
        """
        backbone = self.backbone(config.head_unit)
        config = with_origin(config, self.base_model, self.base_model_revision, dataset)
        if config.steps > 1:
            self._refuse_pruned()
            with self.timings.of("planning"):
                plan, *calibrated = stepwise_plan(self.model, self.processor, backbone, config, dataset, scores)
            self._keep(*calibrated)
            return plan
        self._keep(self.score(config, dataset) if scores is None else scores)
        self._keep(self.scores.weighted(config.modality_weights), self.calibration)
        with self.timings.of("planning"):
            return make_plan(backbone, config, self.scores)

    def check(self, plan: PruningPlan, scores: Scores | None = None) -> PruningPlan:
        """A plan that was read from a file, perhaps edited: the same with its figures worked out anew.

        Args:
            plan: what to remove.
            scores: those beside it; saved with the checkpoint if the plan was made from them.

        Raises:
            UserInputError: the plan does not fit the model.
        """
        if scores is not None:
            self._keep(scores)
        return checked(plan, self._backbone_for(plan))

    def bytes_after(self, plan: PruningPlan) -> int:
        """Bytes that the weights will take once `plan` is carried out."""
        return round(plan.left * weight_bytes(self.model, self._saved_dtype))

    def prune(self, plan: PruningPlan | PruningConfig, dataset: Any = None) -> PreTrainedModel:
        """Remove what the plan says and return the pruned model, which is also `self.model` from then on.

        Args:
            plan: what to remove, or what to plan first.
            dataset: as in `score`; with it the maps that are left are refitted as well, see `PruningConfig.repair`.

        Raises:
            UserInputError: the plan does not fit the model, or as in `plan`.
        """
        self._refuse_pruned()
        refuse_quantized(self.model)
        plan = self.check(self.plan(plan, dataset) if isinstance(plan, PruningConfig) else plan)
        rows = rows_to_repair(plan, self.processor, dataset, is_offloaded(self.model))
        original, backbone = self.model, self._backbone_for(plan)
        with self.timings.of("surgery"):
            size = weight_bytes(original, self._saved_dtype)
            generates = generation_can_be_compared(original, self.processor, backbone.layers_prefix)
            self.model = pruned_model(original, backbone, plan, keep_original=rows is not None)
            self._pruned = (plan, size, generates)
        if rows is not None:
            with self.timings.of("repair"):
                self.repair = repair(original, self.model, backbone, plan, self.processor, rows)
        return rounded(self.model, self._saved_dtype)

    def save_pretrained(
        self,
        output: str | Path,
        overwrite: bool = False,
        verification_inputs: Mapping[str, Tensor] | None = None,
        keep_model: bool = True,
        max_shard_size: int | str = "5GB",
    ) -> PruningReport:
        """Write checkpoint, processor, plan, scores, report and model card, and verify them; all or nothing.

        Args:
            output: folder; must not exist unless `overwrite`.
            overwrite: replace what is there, once the new checkpoint is complete.
            verification_inputs: batch on which the reloaded model is compared with the one in memory; by default an
                image of noise with a prompt, or text alone where there is no processor.
            keep_model: False frees `self.model` before the fresh process loads its copy, so that memory holds one.
            max_shard_size: largest size of one file of weights, as in transformers.

        Returns:
            The report, as written to `pruning_report.json`.

        Raises:
            UserInputError: nothing was pruned yet, or the folder cannot be written.
            VerificationError: the saved checkpoint is not the model in memory; nothing is left behind.
            MemoryError: the fresh process ran out of memory; nothing is left behind.
        """
        if self._pruned is None or self.model is None:
            raise UserInputError("there is no pruned model to save: call prune before save_pretrained.")
        plan, before, generates = self._pruned
        backbone, after = self._backbone_for(plan), weight_bytes(self.model, self._saved_dtype)
        if self.earlier is not None:
            plan, backbone, before = self.earlier.of_both(plan, after)
        output = check_output(output, overwrite, after, [self.base_model])
        scores, calibration = self._calibrated.get(plan.scores, (None, None))
        with self.timings.of("reference"):
            inputs = dict(verification_inputs or trial_inputs(self.model, self.processor))
            reference = reference_of(self.model, inputs, backbone.layers_prefix, generates)
        machine = product_rate(self.model) | environment(as_saved(self.model, self._saved_dtype))
        with atomic_folder(output) as folder, fresh_process(is_offloaded(self.model)) as fresh:
            with self.timings.of("saving"):
                write_checkpoint(folder, self.model, self.processor, plan, scores, max_shard_size)
            if not keep_model:
                self.model = None
                free_memory()
            with self.timings.of("verification"):
                verification = verify(folder, reference, self.processor is not None, fresh)
            return write_record(
                folder,
                output.name,
                plan,
                scores,
                backbone,
                size_bytes={"before": before, "after": after},
                verification=verification,
                seconds=self.timings,
                calibration=calibration,
                environment=machine,
                repair=None if self.repair is None else self.repair.to_dict(),
                license=self.base_model_license,
                has_processor=self.processor is not None,
            )

    def push_to_hub(
        self, repo_id: str, private: bool | None = None, token: str | None = None, revision: str | None = None
    ) -> str:
        """Save, verify and upload to the Hub in one commit, whose address is returned.

        Args:
            repo_id: where to; made if it does not exist.
            private: whether a new repository is private; None as the account has it.
            token: Hub token; None takes the saved one.
            revision: branch to push to; made if it does not exist, None is the main one.

        Raises:
            UserInputError: the Hub refuses it; the checkpoint stays in a temporary folder that the message names.
        """
        return save_and_upload(self.save_pretrained, repo_id, private, token, revision)

    def _keep(self, scores: Scores, calibration: dict[str, Any] | None = None) -> None:
        """A plan is saved with the scores that it was made from, whichever came after them."""
        _, known = self._calibrated.get(scores.fingerprint, (None, None))
        self.scores, self.calibration = scores, calibration or known
        self._calibrated[scores.fingerprint] = (self.scores, self.calibration)

    def _backbone_for(self, plan: PruningPlan) -> Backbone:
        return self.backbone("query" if plan.head_unit == "query" else "auto")

    def _refuse_pruned(self) -> None:
        if self._pruned is not None:
            raise UserInputError("this model was pruned already: make a new MLLMPruner to prune it again.")
