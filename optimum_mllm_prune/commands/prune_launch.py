"""`mllm-prune` as a launch of several processes: they share the calibration, and the first one does what follows."""

from argparse import Namespace

from transformers.utils.logging import disable_progress_bar

from ..calibration.processes import launch
from ..configuration import PruningConfig
from ..errors import UserInputError
from ..importance.registry import metric_of
from .prune_flags import given


# Where what is scored depends on what was pruned or trained before, one process must do it all.
_ALONE = ("search", "steps", "recover", "eval_dataset")


def begin_launch(args: Namespace) -> None:
    """Find the other processes, if there are any; the first one alone shows bars. Raises UserInputError where what is
    asked for is done by one process."""
    state = launch(cpu=args.device == "cpu")
    if state.num_processes == 1:
        return
    for flag in given(args, _ALONE):
        raise UserInputError(
            f"several processes share the calibration alone: leave {flag} out, or start without accelerate launch "
            "(mllm-recover and mllm-eval can be launched by themselves)."
        )
    if not state.is_main_process:
        disable_progress_bar()


def refuse_idle_processes(args: Namespace, config: PruningConfig, sizes_only: bool) -> None:
    """Raise UserInputError where several processes have no calibration to share."""
    by_weights = metric_of(config.importance, config.method).needs == "weights"
    if launch().num_processes > 1 and (args.plan or args.scores or sizes_only or by_weights):
        raise UserInputError(
            "several processes share calibration rows, and none are read: start without accelerate launch."
        )
