"""Runs in a fresh process, as text, without this package: loads a checkpoint as anyone would and looks at it.

Reads a job (JSON) and its tensors (safetensors), writes what it found as JSON. Only torch, transformers and
safetensors are imported here: in that process an import of `optimum_mllm_prune` fails.
"""

import json
import sys
from typing import Any

import torch
import transformers
from safetensors.torch import load_file


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
    model, report = getattr(transformers, job["class"]).from_pretrained(
        job["checkpoint"],
        dtype=getattr(torch, job["dtype"]),
        attn_implementation=job["attention"],
        output_loading_info=True,
    )
    model = aligned(model.eval().to(job["device"]))
    found = {key: sorted(str(name) for name in report[key]) for key in ("missing_keys", "unexpected_keys")}
    found["missing_keys"] += sorted(str(name) for name in report["mismatched_keys"])
    found["model_class"] = type(model).__name__
    found["parameters"] = sum(p.numel() for p in model.parameters())
    if job["processor"]:
        found["processor_class"] = type(transformers.AutoProcessor.from_pretrained(job["checkpoint"])).__name__
    tensors = {name: tensor.to(job["device"]) for name, tensor in load_file(job["tensors"]).items()}
    inputs = {name.removeprefix("inputs."): t for name, t in tensors.items() if name.startswith("inputs.")}
    found["max_abs_logit_difference"] = logit_difference(model, inputs, tensors["logits"])
    if job["new_tokens"]:
        found["generation"] = generate_both_ways(model, inputs, job["special_tokens"], job["new_tokens"])
    found["without_package"] = PACKAGE not in sys.modules
    with open(job["findings"], "w", encoding="utf-8") as out:
        json.dump(found, out)


def aligned(model: Any) -> Any:
    """The model with every tensor on a 64-byte boundary, as in memory; kernels round differently elsewhere.

    Tensors mapped from a file lie wherever the file has them.
    """
    for parameter in model.parameters():
        if parameter.data_ptr() % 64:
            parameter.data = parameter.data.clone()
    return model


@torch.no_grad()
def logit_difference(model: Any, inputs: dict[str, torch.Tensor], expected: torch.Tensor) -> float:
    """Largest absolute difference at real tokens; NaN where a logit is not a number."""
    real = inputs["attention_mask"].bool()
    return (model(**inputs).logits[real].float() - expected[real].float()).abs().max().item()


@torch.no_grad()
def generate_both_ways(
    model: Any, inputs: dict[str, torch.Tensor], special_tokens: list[int], new_tokens: int
) -> dict[str, Any]:
    """Greedy generation with and without a cache, special tokens suppressed.

    Returns:
        "tokens" with the cache (rows, new_tokens); "equal": the same without; "difference": the largest difference of
        the logits behind them, as a share of the largest logit, up to the first token that differs. Both ways round
        differently, so two tokens may rightly differ where their logits tie.
    """
    ways = []
    for use_cache in (True, False):
        ways.append(
            model.generate(
                **inputs,
                do_sample=False,
                num_beams=1,
                use_cache=use_cache,
                min_new_tokens=new_tokens,
                max_new_tokens=new_tokens,
                suppress_tokens=special_tokens,
                return_dict_in_generate=True,
                output_logits=True,
            )
        )
    cached, plain = (way.sequences[:, -new_tokens:] for way in ways)
    same_so_far = torch.cat([torch.ones_like(cached[:, :1]), (cached == plain).long().cumprod(dim=1)[:, :-1]], dim=1)
    first, second = (torch.stack(way.logits, dim=1).float() for way in ways)
    difference = (first - second).abs().amax(dim=-1)[same_so_far.bool()].max() / second.abs().max()
    return {"tokens": cached.tolist(), "equal": bool(torch.equal(cached, plain)), "difference": difference.item()}


if __name__ == "__main__":
    main(sys.argv[1])
