"""Where a pruned checkpoint came from: its own folder with the plan, and the unpruned model that is to teach it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import PartialState
from huggingface_hub import snapshot_download
from transformers import ProcessorMixin

from ..backbone import Backbone, model_class_of
from ..calibration.processors import load_processor
from ..calibration.rows import Rows
from ..checkpoint import free_memory
from ..errors import UserInputError, first_line, note_kept
from ..loading import load_config, load_model
from ..number_formats import working_dtype
from ..planning import PLAN_NAME, PruningPlan
from ..quiet import quiet
from .job import RecoveryJob
from .recipe import Recipe
from .teachers.cache_index import INDEX_NAME, is_complete, require_cacheable
from .teachers.cache_writer import write_cache
from .teachers.cached import CachedTeacher
from .teachers.live import LiveTeacher, Teacher


DEFAULT_TOP_K = 64

# What a pruned checkpoint says of itself, without its weights.
_TOLD = ("*.json", "*.md", "*.png", "pruning_scores.safetensors")


def pruned_folder(model: str, hub: Mapping[str, Any]) -> Path:
    """The folder of a pruned checkpoint; of one on the Hub, what it says of itself is fetched.

    Raises:
        UserInputError: it is no pruned checkpoint, or cannot be reached.
    """
    folder = Path(model)
    if not folder.is_dir():
        try:
            with quiet():
                folder = Path(snapshot_download(model, allow_patterns=list(_TOLD), **hub))
        except (OSError, ValueError) as error:
            raise UserInputError(
                f"no model '{model}': it is neither a local folder nor reachable on the Hub ({first_line(error)})"
            ) from error
    if not (folder / PLAN_NAME).is_file():
        raise UserInputError(
            f"'{model}' is no pruned checkpoint, it holds no {PLAN_NAME}: prune the model first, with mllm-prune."
        )
    return folder


@contextmanager
def cache_kept(folder: str | None) -> Iterator[None]:
    """An error inside tells that a teacher cache is kept, if there is one."""
    try:
        yield
    except BaseException as error:
        if folder and (Path(folder) / INDEX_NAME).exists():
            note_kept(error, f"the teacher cache '{folder}' is kept: the same command goes on from there")
        raise


def check_teacher(job: RecoveryJob, recipe: Recipe, plan: PruningPlan) -> None:
    """What can be said of the teacher before anything is loaded.

    Raises:
        UserInputError: one is named and none is looked at, or the other way round; or no cache can hold what is asked.
    """
    if not recipe.needs_teacher:
        asked = (job.teacher, job.teacher_cache, job.teacher_revision, job.teacher_quantization)
        if any(asked) or job.teacher_dtype != "auto":
            raise UserInputError("this loss looks at no teacher: leave out all that is said of one.")
        return
    if job.teacher_cache:
        require_cacheable(recipe)
    stored = bool(job.teacher_cache) and is_complete(job.teacher_cache)
    if not stored and _name(job, plan)[0] is None:
        raise UserInputError(
            "the pruning plan names no base model, as it was a local one: name the unpruned model with --teacher."
        )


def teacher_for(
    job: RecoveryJob, recipe: Recipe, plan: PruningPlan, processor: ProcessorMixin, drawn: Rows
) -> Teacher | None:
    """The teacher that the recipe asks for: in memory, or from a cache, which is completed first.

    Raises:
        UserInputError: it does not fit the student, the rows or the recipe.
    """
    if not recipe.needs_teacher:
        return None
    if job.teacher_cache and is_complete(job.teacher_cache):
        stored = CachedTeacher(job.teacher_cache)
        if job.top_k is not None and stored.index.top_k and job.top_k != stored.index.top_k:
            raise UserInputError(
                f"the cache '{job.teacher_cache}' holds {stored.index.top_k} logits a token, not {job.top_k}: leave "
                "top_k out, or name another folder."
            )
        _refuse_other_format(job, stored)
        name, options = _name(job, plan)
        stored.check(drawn, processor, load_config(name, **options) if name else None)
        return stored
    teacher = _live(job, recipe, plan, processor)
    if not job.teacher_cache:
        return teacher
    write_cache(job.teacher_cache, teacher, processor, drawn, recipe, job.top_k or DEFAULT_TOP_K, report=print)
    del teacher
    free_memory()
    return CachedTeacher(job.teacher_cache)


def _refuse_other_format(job: RecoveryJob, stored: CachedTeacher) -> None:
    asked = {"teacher_dtype": job.teacher_dtype, "teacher_quantization": job.teacher_quantization}
    held = {"teacher_dtype": stored.index.dtype, "teacher_quantization": stored.index.quantization}
    for name, value in asked.items():
        if value not in (None, "auto", held[name]):
            raise UserInputError(
                f"the cache '{job.teacher_cache}' was written with {name} {held[name] or 'left out'}, not {value}: "
                "leave it out, or name another folder."
            )


def _live(job: RecoveryJob, recipe: Recipe, plan: PruningPlan, processor: ProcessorMixin) -> LiveTeacher:
    name, options = _name(job, plan)
    config = load_config(name, **options)
    if recipe.weight("logits"):
        _require_same_tokens(load_processor(name, **options), processor)
    if recipe.weight("layers") and Backbone(model_class_of(config), config).fingerprint != plan.model["fingerprint"]:
        raise UserInputError(
            f"'{name}' is not the model that this one was pruned from, so layers cannot be matched: give that one, or "
            "leave out the loss term 'layers'."
        )
    bits = job.teacher_quantization
    # Trainer moves it to where it is asked, unless it is quantised.
    device = None if job.device_map else str(PartialState().device) if bits else "cpu"
    dtype = job.teacher_dtype
    if dtype == "auto" and not bits and job.teacher_cache is None:
        dtype = working_dtype(config, str(PartialState().device), job.device_map)
    model = load_model(name, config, dtype, device, job.device_map, bits, **options)
    return LiveTeacher(model, plan.kept_layers if recipe.weight("layers") else ())


def _name(job: RecoveryJob, plan: PruningPlan) -> tuple[str | None, dict[str, Any]]:
    """The teacher's id and how to load it."""
    options = {key: value for key, value in job.hub.items() if key != "revision"}
    if job.teacher:
        return job.teacher, options | ({"revision": job.teacher_revision} if job.teacher_revision else {})
    revision = job.teacher_revision or plan.model.get("base_model_revision")
    return plan.model.get("base_model"), options | ({"revision": revision} if revision else {})


def _require_same_tokens(teacher: ProcessorMixin, student: ProcessorMixin) -> None:
    if teacher.tokenizer.get_vocab() != student.tokenizer.get_vocab():
        raise UserInputError(
            "the teacher's tokenizer gives other tokens than the student's: logits cannot be compared; give the model "
            "that the student was pruned from."
        )
