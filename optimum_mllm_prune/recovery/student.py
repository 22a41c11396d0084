"""What trains: projector alone, adapters in the backbone with the projector in full, or all of both."""

import warnings
from collections.abc import Mapping
from dataclasses import replace

import torch
from accelerate import init_empty_weights
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..backbone import Backbone
from .arguments import RecoveryArguments
from .parts import parts_of


BRIDGE = "recovery_bridge"


class Student:
    """A model made ready for training.

    Attributes:
        base: the plain model, whose weights change.
        model: what is trained: `base`, or `base` wrapped by peft.
        backbone: of `base`.
        parts: of `base`.

    Args:
        base: the pruned model.
        args: say what trains.
        bridge: module name to (student's, teacher's) hidden size, for hidden states of different size: linear maps
            that train with the student and are never part of what is saved in the end.

    Raises:
        UserInputError: the model has no projector or no backbone that can be found.
    """

    def __init__(
        self, base: PreTrainedModel, args: RecoveryArguments, bridge: Mapping[str, tuple[int, int]] | None = None
    ) -> None:
        self.base = base
        self.backbone = Backbone.of(base)
        self.parts = parts_of(base, self.backbone)
        self._formats = {name: parameter.dtype for name, parameter in base.named_parameters()}
        self._lora: LoraConfig | None = None
        self.model: PreTrainedModel | PeftModel = self._made_ready(args, bridge or {})

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers."""
        return self.base.get_submodule(self.backbone.layers_prefix)

    @property
    def bridge(self) -> nn.ModuleDict | None:
        """The bridge as it trains; None where hidden sizes are equal."""
        return getattr(self.base, BRIDGE, None)

    def is_projector(self, name: str) -> bool:
        """Whether a parameter of `model` belongs to the projector."""
        return _plain_name(name) in self.parts.projector_parameters

    def behind_images(self) -> list[nn.Parameter]:
        """What trains of projector and vision tower: a batch without images does not reach it."""
        seeing = self.parts.projector_parameters | self.parts.tower_parameters
        named = [(_plain_name(name), parameter) for name, parameter in self.model.named_parameters()]
        return [parameter for name, parameter in named if parameter.requires_grad and name in seeing]

    def plain(self, state: Mapping[str, Tensor] | None = None) -> PreTrainedModel:
        """The trained model without adapters, bridge or wrappers, in its own format; ends the training of `model`.

        Args:
            state: whole weights of `model`, where it holds but a shard of them: then a new model is made of them.
        """
        model = self.model if state is None else self._with_state(state)
        if isinstance(model, PeftModel):
            model = model.merge_and_unload()
        if hasattr(model, BRIDGE):
            delattr(model, BRIDGE)
        for name, parameter in model.named_parameters():
            parameter.data = parameter.data.to(self._formats[name])
        return model.eval().requires_grad_(False)

    def _made_ready(self, args: RecoveryArguments, bridge: Mapping[str, tuple[int, int]]) -> nn.Module:
        base, parts = self.base, self.parts
        base.requires_grad_(False)
        if bridge:
            weight = next(base.parameters())
            maps = {name: nn.Linear(*sizes, bias=False) for name, sizes in bridge.items()}
            setattr(base, BRIDGE, nn.ModuleDict(maps).to(weight.device))
        if args.train == "lora":
            model = self._with_adapters(args)
        else:
            model = base
            trained = set(parts.projector_parameters)
            trained |= parts.backbone_parameters if args.train == "full" else set()
            trained |= parts.tower_parameters if args.train_vision else set()
            for name, parameter in base.named_parameters():
                parameter.requires_grad_(name in trained or name.startswith(BRIDGE))
        if args.bf16 or args.fp16:
            # Mixed precision: what trains is kept in fp32, or small updates would be lost.
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()
        return model

    def _with_adapters(self, args: RecoveryArguments) -> PeftModel:
        whole = [self.parts.tower] if args.train_vision and self.parts.tower else []
        whole += [name for name in self.parts.projector if not (whole and name.startswith(whole[0] + "."))]
        whole += [f"{BRIDGE}.{name}" for name in self.bridge or ()]
        self._lora = LoraConfig(
            r=args.lora_r,
            lora_alpha=args.lora_alpha,
            lora_dropout=args.lora_dropout,
            target_modules=self.parts.linears,
            modules_to_save=whole,
        )
        return _wrapped(self.base, self._lora)

    def _with_state(self, state: Mapping[str, Tensor]) -> PreTrainedModel | PeftModel:
        with init_empty_weights(include_buffers=False):
            plain = type(self.base)._from_config(self.base.config, dtype=self.base.dtype)
            fresh = plain
            if self._lora is not None:
                whole = [name for name in self._lora.modules_to_save if not name.startswith(BRIDGE)]
                fresh = _wrapped(plain, replace(self._lora, modules_to_save=whole))
        kept = {name: tensor for name, tensor in state.items() if BRIDGE not in name}
        fresh.load_state_dict(kept, strict=True, assign=True)
        plain.tie_weights()
        plain.generation_config = self.base.generation_config
        return fresh


def _wrapped(model: PreTrainedModel, lora: LoraConfig) -> PeftModel:
    """The model with adapters in its own number format."""
    with warnings.catch_warnings():
        # peft asks transformers for a property by a name that transformers has given up.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        return get_peft_model(model, lora, autocast_adapter_dtype=False)


def _plain_name(name: str) -> str:
    return name.removeprefix("base_model.model.").replace("modules_to_save.default.", "")


def trained_parameters(model: nn.Module) -> tuple[int, int]:
    """Parameters that train, and all there are."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)


def is_half(model: nn.Module) -> bool:
    """Whether weights in a 16-bit format train, in which small updates are lost."""
    return any(p.requires_grad and p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters())
