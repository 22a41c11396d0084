"""Memory of a prefill, estimated from the config and measured, on random LLaVA models of about 100 million parameters.

    python tests/planning/prefill_memory.py TEXT_MODEL_TYPE BATCH CONTEXT IMAGES

measures one, in its own process, by the peak of its resident memory (Linux), and prints a line of JSON in bytes.
Without arguments it makes the table of docs/guide.md, each row in a process of its own: once with the memory that
glibc has freed given back at once, and once as glibc does by itself.
"""

import ctypes
import json
import os
import subprocess
import sys

import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

from optimum_mllm_prune.backbone import Backbone, model_class_of
from optimum_mllm_prune.planning.footprint import Load, footprint


ROWS = [
    ("llama", 1, 1024, 0),
    ("llama", 1, 1024, 1),
    ("llama", 4, 1024, 1),
    ("llama", 4, 2048, 1),
    ("llama", 1, 4096, 4),
    ("mistral", 2, 1024, 1),
    ("gemma2", 2, 1024, 1),
    ("gemma3_text", 2, 1024, 1),
]
# From so many bytes on, glibc asks the system for memory of its own for an allocation, and gives it back when freed.
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": str(2**18)}
IMAGE_TOKEN = 7


def llava(text_model_type, width, layers, image_size):
    heads = width // 64
    text = {
        "model_type": text_model_type,
        "hidden_size": width,
        "intermediate_size": width * 8 // 3,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": 64,
        "vocab_size": 16_000,
    }
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": width * 2 // 3,
        "intermediate_size": width * 8 // 3,
        "num_hidden_layers": layers,
        "num_attention_heads": heads * 2 // 3,
        "image_size": image_size,
        "patch_size": 14,
    }
    return LlavaConfig(text_config=text, vision_config=vision, image_token_index=IMAGE_TOKEN)


def prefill(config, batch, context, images):
    """Bytes of resident memory at the peak of making one token, weights and all."""
    model = LlavaForConditionalGeneration(config).eval()
    patches = (config.vision_config.image_size // 14) ** 2
    ids = torch.randint(IMAGE_TOKEN + 1, 1000, (batch, context))
    ids[:, 1 : 1 + images * patches] = IMAGE_TOKEN
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if batch > 1:
        inputs["attention_mask"][0, 0] = 0
    if images:
        size = config.vision_config.image_size
        inputs["pixel_values"] = torch.rand(batch * images, 3, size, size)
    forget_peak()
    with torch.no_grad():
        model.generate(**inputs, max_new_tokens=1, do_sample=False, pad_token_id=0)
    return resident("VmHWM")


def forget_peak():
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def resident(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))


def measured(text_model_type, batch, context, images):
    torch.set_num_threads(1)
    # What the libraries load on their first use is not the model's.
    prefill(llava(text_model_type, 192, 2, 28), 2, 32, min(images, 1))
    forget_peak()
    before = resident("VmRSS")
    config = llava(text_model_type, 768, 8, 336)
    peak = prefill(config, batch, context, images) - before
    estimate = footprint(Backbone(model_class_of(config), config), Load(torch.float32, batch, context, images))
    return {"weights": estimate.weights, "estimate": estimate.total, "measured": peak}


def in_fresh_process(row, environment):
    words = [sys.executable, __file__, *map(str, row)]
    done = subprocess.run(words, env=os.environ | environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def table():
    print("| text model, rows x context, images a row | weights | estimate | measured | by glibc itself |")
    print("|---|---|---|---|---|")
    for row in ROWS:
        lean, usual = (in_fresh_process(row, environment) for environment in (GIVEN_BACK, {}))
        sizes = [lean["weights"], lean["estimate"], lean["measured"], usual["measured"]]
        cells = [f"{size / 1e6:.0f} MB" for size in sizes]
        cells[2] += f" ({lean['estimate'] / lean['measured']:.2f})"
        cells[3] += f" ({usual['estimate'] / usual['measured']:.2f})"
        print(f"| {row[0]}, {row[1]} x {row[2]}, {row[3]} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measured(sys.argv[1], *map(int, sys.argv[2:]))))
    else:
        table()
