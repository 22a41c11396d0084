"""What 30 % fewer parameters gain in speed, against the physical limit.

    python benchmarks/efficiency.py

A LLaVA with random weights, and the same pruned by width and by layers, generate side by side. The limit of the
prefill is the ratio of operations, that of decoding the ratio of bytes that a step reads; the shares tell how
much of it is reached. CPU time is what other processes on the machine disturb least.
"""

import argparse
import copy
import json
import tempfile
from pathlib import Path

import torch
from random_models import adapted_processor, random_model
from transformers import PreTrainedModel

from optimum_mllm_prune import MLLMPruner, PruningConfig
from optimum_mllm_prune.evaluation.efficiency import Loaded, markdown_table, measure_efficiency, plot_memory


def pruned(model: PreTrainedModel, config: PruningConfig) -> PreTrainedModel:
    """A pruned copy."""
    return MLLMPruner(copy.deepcopy(model)).prune(config)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=1536)
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--text-tokens", type=int, default=96)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--plot", type=Path, help="PNG of what memory is made of")
    parser.add_argument("--json", type=Path, help="file for all figures")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    processor, model = adapted_processor(), random_model(args.layers, args.width)
    width = PruningConfig(method="width", ratio=args.ratio, importance="magnitude_l2", channel_multiple=64)
    layer = PruningConfig(method="layer", ratio=args.ratio, importance="magnitude")
    models = {"whole": model, "width": pruned(model, width), "layers": pruned(model, layer)}
    with tempfile.TemporaryDirectory() as scratch:
        folders = {name: Path(scratch) / name for name in models}
        for name, one in models.items():
            one.to(args.device, getattr(torch, args.dtype)).save_pretrained(folders[name])
            processor.save_pretrained(folders[name])
        reports = measure_efficiency(
            {name: Loaded(one, processor) for name, one in models.items()},
            args.batch_sizes,
            args.new_tokens,
            args.repeats,
            args.text_tokens,
            folders,
        )
    print(markdown_table(reports))
    if args.plot:
        plot_memory(reports, args.plot)
    if args.json:
        args.json.write_text(json.dumps({name: report.to_dict() for name, report in reports.items()}, indent=2))


if __name__ == "__main__":
    main()
