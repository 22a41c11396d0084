"""`RecoveryArguments`: TrainingArguments and what recovery adds."""

import sys
from dataclasses import dataclass, field

from transformers import TrainingArguments
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from ..errors import UserInputError
from .few_data import check_share
from .recipe import Recipe, loss_weights


TRAINED = ("projector", "lora", "full")
# Of Trainer's arguments, those that contradict losses which are computed within the model's forward.
REFUSED = ("label_smoothing_factor", "torch_compile", "use_liger_kernel")
# The least that each number may be; None is anything above 0. transformers looks at few of them.
LEAST = {
    "learning_rate": 0,
    "projector_learning_rate": 0,
    "num_train_epochs": None,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0,
    "logging_steps": None,
    "save_steps": None,
    "eval_steps": None,
    "seed": 0,
    "data_seed": 0,
}
GREATEST_SEED = 2**32 - 1


@dataclass
class RecoveryArguments(TrainingArguments):
    """Arguments of a recovery. All of `transformers.TrainingArguments` holds; these are added or have other defaults.

    Raises:
        UserInputError: a value is unknown or out of range.
    """

    loss: str = field(
        default="sft+hidden",
        metadata={"help": "sft, kd, hidden, sft+kd, sft+hidden, sft+hidden+kd, or weights: sft=0.5,hidden=0.5"},
    )
    divergence: str = field(default="forward_kl", metadata={"help": "of the logits: forward_kl, reverse_kl or jsd"})
    temperature: float = field(default=2.0, metadata={"help": "tau at which logits are compared"})
    jsd_beta: float = field(default=0.5, metadata={"help": "beta of the generalised Jensen-Shannon divergence"})
    logits_tokens: str = field(default="answer", metadata={"help": "where logits are compared: answer or text"})
    hidden_distance: str = field(default="mse", metadata={"help": "of hidden states: mse or cosine"})
    hidden_tokens: str = field(default="answer", metadata={"help": "where they are compared: answer, text or all"})
    train: str = field(
        default="lora",
        metadata={"help": "projector alone, lora (low-rank adapters in the backbone, projector in full), or full"},
    )
    train_vision: bool = field(default=False, metadata={"help": "train the vision tower as well"})
    projector_learning_rate: float | None = field(
        default=None, metadata={"help": "learning rate of the projector, where it is another"}
    )
    lora_r: int = field(default=16, metadata={"help": "rank of the adapters"})
    lora_alpha: int = field(default=32, metadata={"help": "scale of the adapters, times 1 / rank"})
    lora_dropout: float = field(default=0.05, metadata={"help": "dropout before the adapters"})
    fraction: float | None = field(default=None, metadata={"help": "share of the rows to train on, such as 0.05"})
    max_samples: int | None = field(default=None, metadata={"help": "number of rows to train on at most"})
    stratify_by: str | None = field(default=None, metadata={"help": "column whose values keep their shares"})
    # Huang et al. (arXiv 2507.20749), appendix: the published settings of one of their models.
    learning_rate: float = field(default=4e-5, metadata={"help": "peak learning rate"})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "schedule of the learning rate"})
    warmup_steps: float = field(default=0.03, metadata={"help": "warm-up: steps, or a share of all where below 1"})
    weight_decay: float = field(default=0.05, metadata={"help": "weight decay"})
    num_train_epochs: float = field(default=1.0, metadata={"help": "passes over the rows"})
    logging_first_step: bool = field(default=True, metadata={"help": "log the first step too"})
    logging_steps: float = field(default=10, metadata={"help": "log the terms of the loss every so many steps"})
    remove_unused_columns: bool = field(default=False, metadata={"help": "must stay off: rows are read whole"})
    prediction_loss_only: bool = field(default=True, metadata={"help": "must stay on: logits are never kept"})

    def __post_init__(self) -> None:
        self._refuse_out_of_range()
        super().__post_init__()
        if is_deepspeed_zero3_enabled():
            raise UserInputError(
                "stage 3 of DeepSpeed's ZeRO holds pieces of the head's weights, of which no logits can be made chunk "
                "by chunk: use stage 1 or 2, or FSDP."
            )
        # Pinned memory is for accelerators; without one torch warns of it.
        self.dataloader_pin_memory &= self.device.type != "cpu"
        if self.train not in TRAINED:
            raise UserInputError(f"unknown train '{self.train}': use one of {', '.join(TRAINED)}.")
        if self.remove_unused_columns or not self.prediction_loss_only:
            raise UserInputError("remove_unused_columns must stay off and prediction_loss_only on: leave them out.")
        for name in REFUSED:
            if getattr(self, name):
                raise UserInputError(f"{name} does not go with these losses: leave it out.")
        if self.train_sampling_strategy not in ("random", "sequential"):
            raise UserInputError(
                "train_sampling_strategy must be random or sequential, as rows have no length: set one."
            )
        if self.fp16 and self.device.type == "cpu":
            raise UserInputError("fp16 needs a GPU: use bf16, or leave it out.")
        if self.lora_r < 1 or self.lora_alpha < 1 or not 0 <= self.lora_dropout < 1:
            raise UserInputError("lora_r and lora_alpha must be at least 1 and lora_dropout in [0, 1): correct them.")
        check_share(self.fraction, self.max_samples)
        self.recipe()

    def _refuse_out_of_range(self) -> None:
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is None:
                continue
            most = GREATEST_SEED if name.endswith("seed") else sys.float_info.max
            if value > most:
                raise UserInputError(f"{name} must be a number of at most {most:.10g}, got {value}.")
            if not (value > 0 if least is None else value >= least):
                bound = "above 0" if least is None else f"of at least {least}"
                raise UserInputError(f"{name} must be a number {bound}, got {value}.")
        if self.max_steps != -1 and self.max_steps < 1:
            raise UserInputError(f"max_steps must be at least 1, got {self.max_steps}.")

    @property
    def draw_seed(self) -> int:
        """Seed of what is drawn from the rows: which of them, and in which order."""
        return self.seed if self.data_seed is None else self.data_seed

    def recipe(self) -> Recipe:
        """The losses. Raises UserInputError."""
        return Recipe(
            weights=loss_weights(self.loss),
            divergence=self.divergence,
            temperature=self.temperature,
            beta=self.jsd_beta,
            logits_tokens=self.logits_tokens,
            distance=self.hidden_distance,
            hidden_tokens=self.hidden_tokens,
        )
