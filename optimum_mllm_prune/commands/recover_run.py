"""What `optimum-cli mllm-recover` does: its mistakes first, then pruned checkpoint to recovered one."""

from argparse import Namespace
from pathlib import Path

from accelerate import PartialState
from transformers.utils.logging import disable_progress_bar

from ..checkpoint import upload
from ..loading import check_device
from ..recovery.job import RecoveryJob
from ..recovery.recover import recover
from ..recovery.settings import recovery_arguments
from ..recovery.training_folder import TrainingFolder
from .command_line import command_line, hub_options, last_part
from .recover_flags import DEFAULTS, PATHS, SOURCES, TRAINING, refuse_contradictions, refuse_idle
from .summary import recovery_table


def run(args: Namespace) -> None:
    """Carry out the command. Raises UserInputError and what the stages raise."""
    refuse_contradictions(args)
    check_device(args.device)
    output = args.output or Path(f"{last_part(args.model)}-recovered")
    given = {name: getattr(args, name) for name in TRAINING}
    if args.device == "cpu":
        given["use_cpu"] = True
    arguments = recovery_arguments(TrainingFolder(output).path, args.config, args.set, given, bool(args.eval_dataset))
    refuse_idle(args, arguments)
    first = PartialState().is_main_process
    if not first:
        disable_progress_bar()
    record = recover(_job(args, output), arguments)
    if not first:
        return
    print(recovery_table(record, output))
    if args.push_to_hub:
        address = upload(output, args.repo_id, args.private or None, args.token, args.push_revision)
        print(f"Pushed: {address}")


def _job(args: Namespace, output: Path) -> RecoveryJob:
    return RecoveryJob(
        model=args.model,
        output=output,
        dataset=args.dataset,
        teacher=args.teacher,
        dataset_split=args.dataset_split,
        eval_dataset=args.eval_dataset,
        eval_split=args.eval_split,
        teacher_cache=args.teacher_cache,
        top_k=args.top_k,
        dtype=args.dtype,
        teacher_dtype=args.teacher_dtype,
        teacher_quantization=args.teacher_quantization,
        device_map=args.device_map,
        overwrite=args.overwrite,
        keep_adapter=args.keep_adapter,
        command=command_line("mllm-recover", args, DEFAULTS, SOURCES, PATHS),
        hub=hub_options(args, "revision", "token", "cache_dir"),
        teacher_revision=args.teacher_revision,
    )
