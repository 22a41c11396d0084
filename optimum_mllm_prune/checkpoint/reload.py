"""Runs in a fresh process, as text, without this package: loads a checkpoint as anyone would and looks at it.

Waits for a line that names a job (JSON), reads it and its tensors (safetensors), writes what it found as JSON. Only
torch, transformers, accelerate and safetensors are imported here: in that process an import of `optimum_mllm_prune`
fails.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import transformers
from accelerate.utils import OffloadedWeightsLoader
from safetensors.torch import load_file
from torch import nn


PACKAGE = "optimum_mllm_prune"


class Blocked:
    """An import hook that refuses this package."""

    def find_spec(self, name: str, *_: object) -> None:
        """Raise ImportError for the package and everything in it."""
        if name.partition(".")[0] == PACKAGE:
            raise ImportError(f"{name} must not be needed to load a checkpoint")


def main(job_file: str) -> None:
    """Load the checkpoint of the job, run it on the job's inputs and write the findings."""
    sys.meta_path.insert(0, Blocked())
    with open(job_file, encoding="utf-8") as stored:
        job = json.load(stored)
    torch.set_num_threads(job["threads"])
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if "disk" in job["device_map"].values():
        aligned_when_fetched()
    model, report = getattr(transformers, job["class"]).from_pretrained(
        job["checkpoint"],
        dtype=getattr(torch, job["dtype"]),
        attn_implementation=job["attention"],
        device_map=job["device_map"],
        offload_folder=job["offload_folder"],
        output_loading_info=True,
    )
    model = aligned(model.eval())
    found = {key: sorted(str(name) for name in report[key]) for key in ("missing_keys", "unexpected_keys")}
    found["missing_keys"] += sorted(str(name) for name in report["mismatched_keys"])
    found["model_class"] = type(model).__name__
    found["parameters"] = sum(p.numel() for p in model.parameters())
    if job["processor"]:
        found["processor_class"] = type(transformers.AutoProcessor.from_pretrained(job["checkpoint"])).__name__
    tensors = {name: tensor.to(model.device) for name, tensor in load_file(job["tensors"]).items()}
    inputs = {name.removeprefix("inputs."): t for name, t in tensors.items() if name.startswith("inputs.")}
    found["max_abs_logit_difference"] = logit_difference(model, inputs, tensors["logits"])
    if job["new_tokens"]:
        layers = model.get_submodule(job["layers"])
        found["generation"] = generate_both_ways(model, layers, inputs, job["special_tokens"], job["new_tokens"])
    found["without_package"] = PACKAGE not in sys.modules
    with open(job["findings"], "w", encoding="utf-8") as out:
        json.dump(found, out)


def aligned(model: Any) -> Any:
    """The model with every tensor on a 64-byte boundary, as in memory; kernels round differently elsewhere.

    Tensors mapped from a file lie wherever the file has them.
    """
    for parameter in model.parameters():
        if not parameter.is_meta and parameter.data_ptr() % 64:
            parameter.data = parameter.data.clone()
    return model


def aligned_when_fetched() -> None:
    """The same for weights that are on disk until they are needed; their files are read and not mapped, so that only
    what is used counts as memory taken."""
    fetch, opened = OffloadedWeightsLoader.__getitem__, transformers.modeling_utils.safe_open
    OffloadedWeightsLoader.__getitem__ = lambda self, key: fetch(self, key).clone()
    transformers.modeling_utils.safe_open = lambda *args, **options: opened(*args, **options | {"backend": "pread"})


@torch.no_grad()
def logit_difference(model: Any, inputs: dict[str, torch.Tensor], expected: torch.Tensor) -> float:
    """Largest absolute difference at real tokens; NaN where a logit is not a number."""
    real = inputs["attention_mask"].bool()
    return (model(**inputs, use_cache=False).logits[real].float() - expected[real].float()).abs().max().item()


@torch.no_grad()
def generate_both_ways(
    model: Any, layers: nn.ModuleList, inputs: dict[str, torch.Tensor], special_tokens: list[int], new_tokens: int
) -> dict[str, Any]:
    """Greedy generation with and without a cache, special tokens suppressed, computed in float32.

    Returns:
        "equal": whether both ways give the same tokens; "difference": the largest difference of the logits behind
        them, up to the first token that differs; "gap": how far the two tokens' logits lie apart where they first
        differ, 0 where none does. Both are shares of the largest logit.
    """
    options = {"do_sample": False, "num_beams": 1, "min_new_tokens": new_tokens, "max_new_tokens": new_tokens}
    options |= {"suppress_tokens": special_tokens, "return_dict_in_generate": True, "output_logits": True}
    inputs = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in inputs.items()}
    with in_float32(model, layers):
        cached, plain = (model.generate(**inputs, **options, use_cache=use_cache) for use_cache in (True, False))
    tokens, others = (way.sequences[:, -new_tokens:] for way in (cached, plain))
    logits, expected = (torch.stack(way.logits, dim=1).float() for way in (cached, plain))
    same = (tokens == others).long().cumprod(dim=1).bool()
    reached = torch.cat([torch.ones_like(same[:, :1]), same[:, :-1]], dim=1)
    chosen, other = (expected.gather(-1, ids.unsqueeze(-1)).squeeze(-1) for ids in (others, tokens))
    largest = expected.abs().max()
    return {
        "equal": bool(same.all()),
        "difference": ((logits - expected).abs().amax(dim=-1)[reached].max() / largest).item(),
        "gap": ((chosen - other)[reached].max() / largest).item(),
    }


@contextmanager
def in_float32(model: Any, layers: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, a model of any number format computes in float32.

    Rounding to bfloat16 moves logits as far as a cache that has lost a layer's past does; in float32 the two lie
    orders of magnitude apart. Of the decoder's layers only the one that runs is widened, so that memory does not
    double.
    """
    inside = {id(tensor) for layer in layers for tensor in _floats(layer)}
    with ExitStack() as stack:
        stack.enter_context(_without_flash_attention(model))
        stack.enter_context(_widened([tensor for tensor in _floats(model) if id(tensor) not in inside]))
        for layer in layers:
            stack.enter_context(_widened_while_it_runs(layer))
        yield


@contextmanager
def _widened_while_it_runs(layer: nn.Module) -> Iterator[None]:
    running = ExitStack()
    hooks = (
        layer.register_forward_pre_hook(lambda *_: running.enter_context(_widened(_floats(layer)))),
        layer.register_forward_hook(lambda *_: running.close(), always_call=True),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _widened(tensors: list[torch.Tensor]) -> Iterator[None]:
    narrow = [tensor.data for tensor in tensors]
    for tensor in tensors:
        tensor.data = tensor.data.float()
    try:
        yield
    finally:
        for tensor, data in zip(tensors, narrow, strict=True):
            tensor.data = data


@contextmanager
def _without_flash_attention(model: Any) -> Iterator[None]:
    """Its kernels know no float32."""
    parts = {"": model.config} | {name: getattr(model.config, name, None) for name in model.config.sub_configs}
    before = {name: part._attn_implementation for name, part in parts.items() if part is not None}
    other = {name: "eager" if "flash" in str(kind) else kind for name, kind in before.items()}
    if other != before:
        model.set_attn_implementation(other)
    try:
        yield
    finally:
        if other != before:
            model.set_attn_implementation(before)


def _floats(module: nn.Module) -> list[torch.Tensor]:
    return [tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.is_floating_point()]


if __name__ == "__main__":
    # All that is imported above is there by now. No job comes where the one who started this has ended.
    if file := sys.stdin.readline().strip():
        main(file)
