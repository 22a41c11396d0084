"""The parts of a vision-language model as recovery sees them: vision tower, projector, language backbone."""

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from ..backbone import Backbone
from ..backbone.finding import image_encoder
from ..backbone.text_config import text_value
from ..errors import UserInputError


# They are not called themselves, so nothing can be put in their place.
LISTS = (nn.ModuleList, nn.ModuleDict)
OF_ARCHITECTURES = ("transformers.models.", "transformers_modules.")


@dataclass(frozen=True)
class Parts:
    """Names of modules and parameters, as in the plain model.

    Attributes:
        tower: module of the vision tower; None where transformers knows none.
        tower_parameters: all its parameters, those of a projector inside it included.
        projector: modules between vision tower and backbone, none inside another.
        projector_parameters: all their parameters, and single ones that stand between the two.
        backbone_parameters: of decoder, token embeddings and head.
        linears: modules of the decoder layers that are linear maps and nothing else.
    """

    tower: str | None
    tower_parameters: frozenset[str]
    projector: list[str]
    projector_parameters: frozenset[str]
    backbone_parameters: frozenset[str]
    linears: list[str]


def parts_of(model: PreTrainedModel, backbone: Backbone) -> Parts:
    """Find the parts.

    The vision tower is what transformers calls the image encoder. The projector is what is neither tower nor backbone;
    where the tower brings it along (Qwen-VL's merger), those of its children that end in the text's hidden size.

    Raises:
        UserInputError: no projector is found.
    """
    language = _names_of(model, model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings())
    tower = image_encoder(model)
    seeing = _names_of(model, tower)
    between = {name for name, _ in model.named_parameters() if name not in language | seeing}
    modules = _covering(model, between)
    if not between and tower is not None:
        modules = _mergers(model, tower, text_value(model.config, "hidden_size"))
        between = {name for name, _ in model.named_parameters() if name.startswith(tuple(m + "." for m in modules))}
    if not between:
        raise UserInputError(
            f"no projector is found between the vision tower and the backbone of {type(model).__name__}: "
            "it cannot be recovered here."
        )
    layers = model.get_submodule(backbone.layers_prefix)
    linears = [f"{backbone.layers_prefix}.{name}" for name, m in layers.named_modules() if _is_linear(m)]
    home = None if tower is None else _name_of(model, tower)
    return Parts(home, frozenset(seeing), modules, frozenset(between), frozenset(language), linears)


def _name_of(model: nn.Module, module: nn.Module) -> str:
    return next(name for name, other in model.named_modules() if other is module)


def _names_of(model: nn.Module, *modules: nn.Module | None) -> set[str]:
    """Names in `model` of all parameters below some of its modules."""
    inside = {id(p) for module in modules if module is not None for p in module.parameters()}
    return {name for name, p in model.named_parameters(remove_duplicate=False) if id(p) in inside}


def _covering(model: nn.Module, parameters: set[str]) -> list[str]:
    """The largest modules that hold nothing but some of these parameters."""
    found: list[str] = []
    for name, module in model.named_modules():
        own = [f"{name}.{inner}" if name else inner for inner, _ in module.named_parameters()]
        inside_other = any(name.startswith(other + ".") for other in found)
        if own and not inside_other and not isinstance(module, LISTS) and parameters.issuperset(own):
            found.append(name)
    return found


def _mergers(model: nn.Module, tower: nn.Module, hidden_size: int) -> list[str]:
    """Children of the tower that hold a linear map to the text's hidden size, but not its layers."""
    home = _name_of(model, tower)
    lists = [m for m in tower.modules() if isinstance(m, nn.ModuleList)]
    layers = max(lists, key=len)
    found = []
    for name, child in tower.named_children():
        ends = any(isinstance(m, nn.Linear) and m.out_features == hidden_size for m in child.modules())
        if ends and all(inner is not layers for inner in child.modules()):
            members = [f"{name}.{i}" for i, _ in child.named_children()] if isinstance(child, LISTS) else [name]
            found += [f"{home}.{member}" for member in members]
    return found


def _is_linear(module: nn.Module) -> bool:
    """Whether it gives its product alone; an architecture's own kind, such as Llama 4's router, gives more."""
    return isinstance(module, nn.Linear) and not type(module).__module__.startswith(OF_ARCHITECTURES)
