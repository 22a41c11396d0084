"""From a pruned checkpoint to a recovered one: all that `optimum-cli mllm-recover` does, as one function."""

import time
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import PreTrainedModel, ProcessorMixin

from ..calibration.processors import load_processor
from ..calibration.rows import Rows, open_rows
from ..checkpoint import check_output
from ..errors import UserInputError
from ..fingerprints import model_fingerprint, rows_fingerprint
from ..loading import load_config, load_model, public_name
from ..number_formats import as_saved, saved_dtype
from ..planning import PruningPlan
from ..version import __version__
from .arguments import RecoveryArguments
from .job import RecoveryJob
from .origin import cache_kept, check_teacher, pruned_folder, teacher_for
from .recipe import Recipe
from .record import RecoveryRecord, terms_at
from .result import save_recovered
from .student import trained_parameters
from .trainer import RecoveryTrainer, few_rows
from .training_folder import TrainingFolder


# Arguments that may change when a broken-off training goes on.
_NOT_DECISIVE = {
    "output_dir",
    "logging_steps",
    "logging_strategy",
    "save_steps",
    "save_strategy",
    "save_total_limit",
    "report_to",
    "run_name",
    "disable_tqdm",
    "log_level",
    "log_level_replica",
    "dataloader_num_workers",
    "local_rank",
    "resume_from_checkpoint",
    "hub_token",
    "eval_strategy",
    "eval_steps",
    "per_device_eval_batch_size",
}
_PACKAGES = ("torch", "transformers", "peft")


def recover(job: RecoveryJob, args: RecoveryArguments) -> RecoveryRecord:
    """Train a pruned checkpoint and write the result; every process of a launch must call it.

    Args:
        job: what, from what, where to.
        args: how; `output_dir` must be that of `TrainingFolder(job.output)`.

    Returns:
        What was done, as it stands in the report of the result.

    Raises:
        UserInputError: the checkpoint is no pruned one, teacher or rows do not fit, or a folder cannot be written.
        VerificationError: the saved result is not the model in memory; the training's checkpoints are kept.
    """
    with cache_kept(job.teacher_cache):
        return _recover(job, args)


def _recover(job: RecoveryJob, args: RecoveryArguments) -> RecoveryRecord:
    state = PartialState()
    sources = [job.model, job.teacher, job.dataset, job.eval_dataset, job.teacher_cache]
    output = check_output(job.output, job.overwrite, sources=sources)
    _refuse_lost_cache(job)
    origin = pruned_folder(job.model, job.hub)
    plan = PruningPlan.load(origin)
    check_teacher(job, args.recipe(), plan)
    rows, held_out = _rows(job)
    drawn = few_rows(rows, args)
    student, processor, dtype = _load_student(job, args)
    teacher = teacher_for(job, args.recipe(), plan, processor, drawn)
    run = _run(args, student, drawn, state.num_processes)
    trainer = RecoveryTrainer(student, teacher, args, rows, held_out, processor, plan)
    sizes = trained_parameters(trainer.model)
    with TrainingFolder(output).claimed(run) as last_checkpoint:
        start = time.perf_counter()
        trainer.train(resume_from_checkpoint=last_checkpoint)
        record = _record(job, trainer, len(rows), sizes, time.perf_counter() - start, plan)
        adapter = _kept_adapter(job, trainer)
        model = trainer.plain_model()
        if state.is_main_process:
            history = trainer.state.log_history
            save_recovered(output, as_saved(model, dtype), processor, origin, plan, record.to_dict(), history, adapter)
    state.wait_for_everyone()
    if state.is_main_process:
        TrainingFolder(output).remove()
    return record


def _refuse_lost_cache(job: RecoveryJob) -> None:
    """The result takes the place of the output, and what the training has left beside it is removed."""
    cache = job.teacher_cache and Path(job.teacher_cache).resolve()
    for folder in (job.output, TrainingFolder(job.output).path):
        if cache and cache.is_relative_to(folder.resolve()):
            raise UserInputError(
                f"the teacher cache '{job.teacher_cache}' would be lost with '{folder}', which this run replaces: "
                "name another folder."
            )


def _rows(job: RecoveryJob) -> tuple[Rows, Rows | None]:
    options = {"token": job.hub.get("token"), "cache_dir": job.hub.get("cache_dir")}
    rows = open_rows(job.dataset, job.dataset_split, **options)
    return rows, open_rows(job.eval_dataset, job.eval_split, **options) if job.eval_dataset else None


def _load_student(job: RecoveryJob, args: RecoveryArguments) -> tuple[PreTrainedModel, ProcessorMixin, torch.dtype]:
    """The pruned model to be trained, its processor, and the number format in which it is saved."""
    config = load_config(job.model, **job.hub)
    processor = load_processor(job.model, **job.hub)
    mixed = args.bf16 or args.fp16
    dtype = job.dtype if job.dtype != "auto" or mixed else "float32"
    # Trainer puts it where it trains.
    device = None if job.device_map else "cpu"
    model = load_model(job.model, config, dtype, device, job.device_map, **job.hub)
    return model, processor, saved_dtype(config)


def _run(args: RecoveryArguments, student: PreTrainedModel, drawn: Rows, processes: int) -> dict[str, Any]:
    """What decides how the training goes."""
    return {
        "arguments": {key: value for key, value in args.to_dict().items() if key not in _NOT_DECISIVE},
        "student": model_fingerprint(student),
        "rows": rows_fingerprint(drawn),
        "processes": processes,
    }


def _kept_adapter(job: RecoveryJob, trainer: RecoveryTrainer) -> Path | None:
    """The adapter as peft saves it, before it is merged; None where none is wanted."""
    if not job.keep_adapter or trainer.args.train != "lora":
        return None
    for config in trainer.model.peft_config.values():
        config.base_model_name_or_path = public_name(job.model)
    folder = Path(trainer.args.output_dir) / "adapter"
    trainer.save_model(str(folder), _internal_call=True)
    return folder


def _record(
    job: RecoveryJob,
    trainer: RecoveryTrainer,
    rows_available: int,
    sizes: tuple[int, int],
    seconds: float,
    plan: PruningPlan,
) -> RecoveryRecord:
    args, recipe, history = trainer.args, trainer.recipe, trainer.state.log_history
    teacher = (job.teacher or plan.model.get("base_model")) if recipe.needs_teacher else None
    return RecoveryRecord(
        loss=args.loss,
        weights=dict(recipe.weights),
        settings=_settings(recipe),
        train=args.train,
        trained_parameters=sizes[0],
        all_parameters=sizes[1],
        teacher=public_name(teacher) if teacher else None,
        cached=bool(recipe.needs_teacher and job.teacher_cache),
        dataset=public_name(job.dataset),
        rows=len(trainer.train_dataset),
        rows_available=rows_available,
        stratify_by=args.stratify_by,
        seed=args.seed,
        epochs=round(trainer.state.epoch or 0.0, 3),
        steps=trainer.state.global_step,
        batch_size=args.train_batch_size * args.gradient_accumulation_steps * trainer.accelerator.num_processes,
        processes=trainer.accelerator.num_processes,
        learning_rate=args.learning_rate,
        projector_learning_rate=args.projector_learning_rate,
        first=terms_at(history, 0),
        last=terms_at(history, -1),
        seconds=round(seconds, 1),
        command=job.command,
        versions={"optimum_mllm_prune": __version__} | {name: version(name) for name in _PACKAGES},
    )


def _settings(recipe: Recipe) -> dict[str, Any]:
    """Settings of the losses that are not at their default."""
    found = {f.name: getattr(recipe, f.name) for f in fields(Recipe) if f.name != "weights"}
    return {name: value for name, value in found.items() if value != getattr(Recipe, name)}
