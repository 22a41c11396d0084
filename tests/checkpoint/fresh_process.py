"""Runs as text in a fresh process, which refuses `optimum_mllm_prune`: loads many checkpoints and looks at each.

Every folder of a list holds `model/`, a checkpoint, and `said.safetensors`: inputs and logits of the model in memory,
named `KIND/inputs/NAME` and `KIND/logits`. What is found is written beside them as `found.json`.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText


NEW_TOKENS = 5


class Refusing:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "optimum_mllm_prune":
            raise ImportError("not in this process")


@torch.no_grad()
def look_at(folder, special_tokens):
    model, report = AutoModelForImageTextToText.from_pretrained(folder / "model", output_loading_info=True)
    for parameter in model.parameters():
        # Tensors mapped from a file may lie off the alignment of freshly made ones; kernels then round differently.
        parameter.data = parameter.data.clone()
    model.eval()
    said = load_file(folder / "said.safetensors")
    found = {"complaints": {key: sorted(map(str, names)) for key, names in report.items() if names}}
    for kind in sorted({name.partition("/")[0] for name in said}):
        start = f"{kind}/inputs/"
        inputs = {name.removeprefix(start): tensor for name, tensor in said.items() if name.startswith(start)}
        expected = said[f"{kind}/logits"]
        tokens, logits = zip(
            *(generated(model, inputs, cached, special_tokens) for cached in (True, False)), strict=True
        )
        found[kind] = {
            "difference": (model(**inputs).logits - expected).abs().max().item(),
            "equal_tokens": torch.equal(*tokens),
            "cache_difference": (logits[0] - logits[1]).abs().max().item(),
        }
    return found


def generated(model, inputs, use_cache, special_tokens):
    made = model.generate(
        **inputs,
        do_sample=False,
        use_cache=use_cache,
        min_new_tokens=NEW_TOKENS,
        max_new_tokens=NEW_TOKENS,
        pad_token_id=special_tokens[0],
        suppress_tokens=special_tokens,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return made.sequences[:, -NEW_TOKENS:], torch.stack(made.logits, dim=1)


def main(job):
    sys.meta_path.insert(0, Refusing())
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    job = json.loads(Path(job).read_text())
    for folder in map(Path, job["folders"]):
        try:
            found = look_at(folder, job["special_tokens"])
        except Exception as error:
            found = {"failure": f"{type(error).__name__}: {error}"}
        found["without_package"] = "optimum_mllm_prune" not in sys.modules
        (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
