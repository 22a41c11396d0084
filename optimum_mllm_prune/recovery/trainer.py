"""`RecoveryTrainer`: transformers' Trainer with the losses of recovery."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from optimum.utils import logging
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PreTrainedModel, ProcessorMixin, Trainer, set_seed
from transformers.trainer import TRAINING_ARGS_NAME

from ..backbone.text_config import text_value
from ..calibration.batches import Modality
from ..calibration.rows import Rows, as_rows
from ..errors import UserInputError
from ..planning import PruningPlan
from .arguments import RecoveryArguments
from .batching import HomogeneousSampler, NumberedRows, RowCollator, numbered
from .few_data import draw_few
from .objective import BatchObjective
from .recipe import TERMS, Recipe
from .student import Student, is_half
from .tap import Tap
from .teachers.cached import CachedTeacher
from .teachers.live import LiveTeacher, Teacher
from .tokens import counts


logger = logging.get_logger("optimum.mllm_prune.recovery")

OWN_INPUTS = ("labels", "modality", "row_number")


class RecoveryTrainer(Trainer):
    """Trains a pruned model on rows and on what the unpruned one says of them.

    Everything else is Trainer's: accumulation, mixed precision, several processes, checkpoints, resumption. After
    training, `plain_model()` or `save_model(folder)` gives the model without adapters or wrappers.

    Args:
        model: the pruned model; its weights are trained in place.
        teacher: the unpruned model, or a `CachedTeacher`; not needed for the loss "sft".
        args: `RecoveryArguments`.
        train_dataset: rows in any form the pruner reads; `fraction` or `max_samples` of them are drawn.
        eval_dataset: rows on which the same loss is evaluated.
        processing_class: the model's processor.
        plan: of the pruning, which tells for the loss term "layers" where each layer came from.
        others: as for Trainer (callbacks, optimizers, ...).

    Raises:
        UserInputError: a teacher, a plan or a processor is missing or does not fit, or rows cannot be used.
    """

    # compute_loss divides by the number of tokens of the whole step.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: PreTrainedModel,
        teacher: PreTrainedModel | Teacher | None = None,
        args: RecoveryArguments | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: ProcessorMixin | None = None,
        plan: PruningPlan | None = None,
        **others: Any,
    ) -> None:
        args = args or RecoveryArguments()
        if processing_class is None:
            raise UserInputError("rows cannot be read without a processor: give processing_class.")
        if args.n_gpu > 1 and not getattr(model, "hf_device_map", None):
            raise UserInputError("several GPUs in one process: start with `accelerate launch`, or show it one GPU.")
        # Adapters are random, and made before Trainer sets its seed.
        set_seed(args.seed)
        self.recipe: Recipe = args.recipe()
        self.layer_map = _layer_map(model, plan) if self.recipe.weight("layers") else []
        self.teacher = self._ready_teacher(teacher, model)
        self._refuse_held_out(eval_dataset)
        self.student = Student(model, args, self._bridge_sizes(model))
        self.tap = Tap(model, self.student.layers, [own for own, _ in self.layer_map])
        self.tap.install()
        rows = None if train_dataset is None else few_rows(train_dataset, args)
        super().__init__(
            model=self.student.model,
            args=args,
            data_collator=RowCollator(processing_class),
            train_dataset=None if rows is None else NumberedRows(rows),
            eval_dataset=numbered(eval_dataset),
            processing_class=processing_class,
            **others,
        )
        # Counts of tokens are asked for whatever the architecture's own loss takes.
        self.model_accepts_loss_kwargs = True
        self.label_names = ["labels"]
        if isinstance(self.teacher, LiveTeacher):
            self.teacher.to(self.accelerator.device)
        if is_half(self.student.model):
            logger.warning("Weights train in 16 bits, where small updates are lost: load in float32, or set bf16.")
        self._terms = torch.zeros(len(TERMS))
        self._terms_of: set[int] = set()

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of the recipe's terms.

        Args:
            model: the student as Trainer has wrapped it.
            inputs: a batch of `RowCollator`.
            return_outputs: also give the terms, by name.
            num_items_in_batch: (3,) positions of each of `tokens.TOKENS` in the whole step, as `get_batch_samples`
                counts them; a single number stands for all three; None, or evaluation, counts this batch.
        """
        labels, modality, rows = (inputs[name] for name in OWN_INPUTS)
        seen = {name: value for name, value in inputs.items() if name not in OWN_INPUTS}
        whole_step = model.training and num_items_in_batch is not None
        number = num_items_in_batch if whole_step else counts(modality)
        objective = BatchObjective(
            recipe=self.recipe,
            labels=labels,
            modality=modality,
            counts=torch.as_tensor(number, device=labels.device).expand(3),
            guidance=self.teacher.guide(seen, modality, rows, self.recipe) if self.teacher else None,
            layer_map=self.layer_map,
            bridge=self.student.bridge,
            unreached=tuple if (modality == Modality.IMAGE).any() else self.student.behind_images,
        )
        loss, terms = model(**self._as_student_reads(seen), objective=objective)
        scale = self._processes_to_average() if whole_step else 1
        loss, terms = loss * scale, terms * scale
        if model.training:
            self._terms = self._terms.to(terms.device) + terms
            self._terms_of.add(self.state.global_step)
        return (loss, dict(zip(TERMS, terms, strict=True))) if return_outputs else loss

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, Tensor]:
        """The batches of one step, and (3,) how many positions of each kind they have on all processes together."""
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not samples:
            return samples, None
        number = sum(counts(batch["modality"]) for batch in samples).to(device)
        if self._processes_to_average() > 1:
            number = self.accelerator.gather(number.unsqueeze(0)).sum(dim=0)
        return samples, number

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """As Trainer's; ends the training where the loss is not a number, before the weights are touched."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not loss.isfinite():
            raise UserInputError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}: lower the learning rate (now "
                f"{self.args.learning_rate:g}) or train in bfloat16 or float32; checkpoints up to here are kept."
            )
        return loss

    def evaluate(self, eval_dataset: Any = None, *others: Any, **named: Any) -> dict[str, float]:
        """As Trainer's, of rows in any form the pruner reads, or of several by name."""
        self._refuse_held_out(eval_dataset)
        known = isinstance(self.eval_dataset, dict) and eval_dataset in list(self.eval_dataset)
        return super().evaluate(eval_dataset if known else numbered(eval_dataset), *others, **named)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As Trainer's, with every term of the loss beside its sum."""
        if "loss" in logs:
            terms = self.accelerator.gather(self._terms.to(self.accelerator.device).unsqueeze(0)).mean(dim=0)
            terms /= max(len(self._terms_of), 1)
            logs |= {f"loss_{name}": terms[TERMS.index(name)].item() for name in self.recipe.weights}
            self._terms.zero_()
            self._terms_of.clear()
        super().log(logs, start_time)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """As Trainer's; the projector in groups of its own where it has another learning rate."""
        optimizer = super().create_optimizer(model)
        rate = self.args.projector_learning_rate
        if rate is not None:
            named = (model or self.model).named_parameters()
            projector = {id(p) for name, p in named if self.student.is_projector(name)}
            for group in list(optimizer.param_groups):
                apart = [p for p in group["params"] if id(p) in projector]
                group["params"] = [p for p in group["params"] if id(p) not in projector]
                if apart:
                    optimizer.add_param_group({**group, "params": apart, "lr": rate})
        return optimizer

    def plain_model(self) -> PreTrainedModel | None:
        """The trained model without adapters or wrappers; None on all processes but the first where it is sharded.

        Ends the training: adapters are merged in place. Every process must call it.
        """
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        state = self.accelerator.get_state_dict(self.model_wrapped) if sharded else None
        self.accelerator.unwrap_model(self.model_wrapped, keep_fp32_wrapper=False)
        self.tap.remove()
        if sharded and not self.accelerator.is_main_process:
            return None
        return self.student.plain(state)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the plain trained model and the processor, and end the training. Checkpoints within it stay Trainer's.

        Nothing is verified here; `recover` does that as well.
        """
        if _internal_call:
            super().save_model(output_dir, _internal_call)
            return
        model = self.plain_model()
        if self.args.should_save:
            model.save_pretrained(output_dir or self.args.output_dir)
            self.processing_class.save_pretrained(output_dir or self.args.output_dir)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = output_dir or self.args.output_dir
        if isinstance(self.model, PreTrainedModel) and self.args.should_save:
            # Trainer resumes by the names in memory; under those of the Hub it would find nothing, and only warn.
            self.model.save_pretrained(folder, state_dict=state_dict, save_original_format=False)
            self.processing_class.save_pretrained(folder)
        else:
            super()._save(folder, state_dict)
        # A pickle, which nothing reads again.
        (Path(folder) / TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        flags = (train_dataset or self.train_dataset).with_images
        if len(set(flags)) == 1:
            return super()._get_train_sampler(train_dataset)
        seed = None if self.args.train_sampling_strategy == "sequential" else self.args.draw_seed
        return HomogeneousSampler(flags, self.args.train_batch_size, seed)

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler | None:
        flags = eval_dataset.with_images
        if len(set(flags)) == 1:
            return super()._get_eval_sampler(eval_dataset)
        return HomogeneousSampler(flags, self.args.eval_batch_size, seed=None)

    def _refuse_held_out(self, dataset: Any) -> None:
        if dataset is not None and isinstance(self.teacher, CachedTeacher):
            raise UserInputError(
                "a cache holds what the teacher said of the rows to train on alone: leave the held-out rows out, or "
                "keep the teacher in memory."
            )

    def _ready_teacher(self, teacher: Any, model: PreTrainedModel) -> Teacher | None:
        if not self.recipe.needs_teacher:
            return None
        if teacher is None:
            raise UserInputError("this loss looks at the unpruned model: give a teacher, or use the loss 'sft'.")
        if isinstance(teacher, str | Path) or teacher is model:
            raise UserInputError(
                "the teacher must be a model of its own: load the unpruned one and give it as teacher."
            )
        if isinstance(teacher, PreTrainedModel):
            teacher = LiveTeacher(teacher, [original for _, original in self.layer_map])
        teacher.require(self.recipe, len(model.get_output_embeddings().weight))
        return teacher

    def _bridge_sizes(self, model: PreTrainedModel) -> dict[str, tuple[int, int]]:
        own = text_value(model.config, "hidden_size")
        if self.teacher is None or self.teacher.hidden_size == own:
            return {}
        names = {"hidden": "final", "layers": "layers"}
        return {bridge: (own, self.teacher.hidden_size) for term, bridge in names.items() if self.recipe.weight(term)}

    def _as_student_reads(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        dtype = self.student.base.dtype
        floating = {name for name, value in inputs.items() if isinstance(value, Tensor) and value.is_floating_point()}
        return {name: value.to(dtype) if name in floating else value for name, value in inputs.items()}

    def _processes_to_average(self) -> int:
        """Gradients are averaged over so many processes, while losses are divided by the tokens of all of them."""
        return self.accelerator.num_processes if self.args.average_tokens_across_devices else 1


def few_rows(dataset: Any, args: RecoveryArguments) -> Rows:
    """The rows to train on, as `args` draw them."""
    rows = as_rows(dataset)
    strata = None if args.stratify_by is None else rows.column(args.stratify_by)
    chosen = draw_few(len(rows), args.fraction, args.max_samples, args.draw_seed, strata)
    return rows if len(chosen) == len(rows) else rows.take(chosen)


def _layer_map(model: PreTrainedModel, plan: PruningPlan | None) -> Sequence[tuple[int, int]]:
    if plan is None:
        raise UserInputError("the loss term 'layers' must know where each layer came from: give the pruning plan.")
    depth = text_value(model.config, "num_hidden_layers")
    if len(plan.kept_layers) != depth:
        raise UserInputError(
            f"the plan leaves {len(plan.kept_layers)} layers, the model has {depth}: give the plan it was pruned by."
        )
    return list(enumerate(plan.kept_layers))
