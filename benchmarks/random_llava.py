"""A LLaVA of any size with random weights, written shard by shard: never more than one layer in memory.

    python benchmarks/random_llava.py OUTPUT --processor examples/digit_scenes/llava

The default is the shape of llava-hf/llava-1.5-7b-hf in bfloat16 (14.1 GB); `--device cuda` draws the numbers there,
in seconds. The processor's image size and patches are set to the vision tower's.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    AutoProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
)


SHARD_BYTES = 1_000_000_000


def config_7b() -> LlavaConfig:
    """The config of llava-hf/llava-1.5-7b-hf."""
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )
    text = LlamaConfig(vocab_size=32064, max_position_embeddings=4096, rms_norm_eps=1e-5)
    return LlavaConfig(text_config=text, vision_config=vision, image_token_index=32000, pad_token_id=32001)


def tensors(model: PreTrainedModel, seed: int, device: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Random bfloat16 weights under the model's own names: norms one, biases zero, the rest N(0, 0.02)."""
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in model.state_dict().items():
        if parameter.ndim < 2:
            yield (
                name,
                torch.full(parameter.shape, float("norm" in name and name.endswith("weight")), dtype=torch.bfloat16),
            )
        else:
            drawn = torch.empty(parameter.shape, dtype=torch.bfloat16, device=device)
            yield name, drawn.normal_(0, 0.02, generator=generator).cpu()


def write(model: PreTrainedModel, folder: Path, seed: int, device: str) -> None:
    """Shards of about 1 GB and their index."""
    shard: dict[str, torch.Tensor] = {}
    home: dict[str, str] = {}
    total = 0

    def flush() -> None:
        name = f"model-{len(set(home.values())) + 1:05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        home.update(dict.fromkeys(shard, name))
        shard.clear()

    for name, tensor in tensors(model, seed, device):
        shard[name] = tensor
        total += tensor.nbytes
        if sum(t.nbytes for t in shard.values()) > SHARD_BYTES:
            flush()
    flush()
    index = {"metadata": {"total_size": total}, "weight_map": home}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def make(output: Path, processor_folder: Path, layers: int = 32, seed: int = 0, device: str = "cpu") -> None:
    """Write model and processor into a new folder."""
    output.mkdir(parents=True)
    config = config_7b()
    config.text_config.num_hidden_layers = layers
    processor = AutoProcessor.from_pretrained(processor_folder)
    config.image_token_index = processor.image_token_id
    config.pad_token_id = processor.tokenizer.pad_token_id
    side = {"height": config.vision_config.image_size, "width": config.vision_config.image_size}
    processor.image_processor.size = processor.image_processor.crop_size = side
    processor.patch_size = config.vision_config.patch_size
    processor.tokenizer.model_max_length = config.text_config.max_position_embeddings
    config.dtype = torch.bfloat16
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    write(model, output, seed, device)
    config.architectures = [LlavaForConditionalGeneration.__name__]
    config.save_pretrained(output)
    processor.save_pretrained(output)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument("--processor", type=Path, required=True, help="folder of a LLaVA processor to adapt")
    parser.add_argument("--layers", type=int, default=32, help="decoder layers (default 32)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="where the numbers are drawn")
    args = parser.parse_args()
    make(args.output, args.processor, args.layers, args.seed, args.device)


if __name__ == "__main__":
    main()
