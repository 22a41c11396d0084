"""What pruning takes by this package and by others: the same weights, rows and machine, time and peak memory.

    pip install torch-pruning
    python benchmarks/peers.py

Heads and MLP channels by |w g| of the answer loss: `ours`; `torch-pruning`, the package, given the same gradients; and
`all gradients`, the method of LLM-Pruner (arXiv 2305.11627) written down plainly, which keeps every gradient until the
backward pass ends. Layers by Block Influence: `ours`, and `all states`, from `output_hidden_states`. All score, plan
and prune in memory; nothing is loaded, saved or verified.

Every way runs in a process of its own, in turns, on a LLaVA with random weights; times are medians. The floor is a
forward pass of all rows, with a backward pass to the token embeddings where gradients are looked at. Memory is the
peak above the loaded model, as a share of its weights.

torch-pruning follows the graph of a traced pass. Through Llama's rotary embeddings that came to no end (1.6.0, four
layers of 512: stopped after ten minutes), so they are left out of the trace; as whole heads go, it needs them not.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from unittest.mock import patch

import torch
from apart import measured_apart
from random_models import adapted_processor, random_model
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel
from transformers.models.llama import modeling_llama

from optimum_mllm_prune import MLLMPruner, PruningConfig
from optimum_mllm_prune.calibration.batches import Batch, Modality, batches
from optimum_mllm_prune.calibration.engine import answer_loss
from optimum_mllm_prune.calibration.rows import synthetic_row
from optimum_mllm_prune.checkpoint import peak_memory


Way = Callable[[PreTrainedModel, Sequence], PreTrainedModel | None]

HEAD_SIZE = 64
RATIO = 0.25
BATCH_SIZE = 8


def ours(model: PreTrainedModel, rows: Sequence, **wish: object) -> PreTrainedModel:
    """By the package."""
    pruner = MLLMPruner(model, adapted_processor())
    # The others count what they take from the layers alone.
    inside = sum(parameter.numel() for parameter in model.model.language_model.layers.parameters())
    ratio = RATIO * inside / pruner.backbone().backbone_parameters
    config = PruningConfig(ratio=ratio, num_samples=len(rows), repair="none", **wish)
    return pruner.prune(pruner.plan(config, rows))


def by_torch_pruning(model: PreTrainedModel, rows: Sequence) -> PreTrainedModel:
    """By the package of that name."""
    import torch_pruning

    decoder, heads, ignored = model.model.language_model, {}, []
    differentiate(model, rows)
    for layer in decoder.layers:
        attention = layer.self_attn
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
            heads[linear] = linear.out_features // HEAD_SIZE
        # The residual stream keeps its width.
        ignored += [attention.o_proj, layer.mlp.down_proj]
    with patch.object(modeling_llama, "apply_rotary_pos_emb", lambda queries, keys, *_: (queries, keys)):
        pruner = torch_pruning.pruner.BasePruner(
            decoder,
            example_inputs={"input_ids": torch.arange(8).unsqueeze(0)},
            importance=torch_pruning.importance.GroupTaylorImportance(),
            pruning_ratio=RATIO,
            head_pruning_ratio=RATIO,
            ignored_layers=[decoder.embed_tokens, *ignored],
            num_heads=heads,
            prune_num_heads=True,
            prune_head_dims=False,
            unwrapped_parameters=[(norm, 0) for norm in decoder.parameters() if norm.ndim == 1],
            output_transform=lambda output: output.last_hidden_state,
        )
    pruner.step()
    return model


def by_all_gradients(model: PreTrainedModel, rows: Sequence) -> PreTrainedModel:
    """Every gradient kept, then sums of |w g| over what belongs to a head or a channel."""
    differentiate(model, rows)
    with torch.no_grad():
        for layer in model.model.language_model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            _cut([attention.q_proj, attention.k_proj, attention.v_proj], attention.o_proj, HEAD_SIZE)
            _cut([mlp.gate_proj, mlp.up_proj], mlp.down_proj, 1)
    model.zero_grad(set_to_none=True)
    return model


def by_all_states(model: PreTrainedModel, rows: Sequence) -> PreTrainedModel:
    """1 - cos between the hidden states that the model gives; the least layers are taken out of the list."""
    turned, tokens = torch.zeros(model.config.text_config.num_hidden_layers), 0
    for batch in batches(adapted_processor(), rows, BATCH_SIZE):
        with torch.no_grad():
            states = model(**batch.inputs, output_hidden_states=True, logits_to_keep=1).hidden_states
        real = batch.modality != Modality.PADDING
        similar = [cosine_similarity(a, b, dim=-1)[real] for a, b in pairwise(states)]
        turned += torch.stack([(1 - one).sum() for one in similar])
        tokens += int(real.sum())
    kept = (turned / tokens).argsort()[round(RATIO * len(turned)) :].sort().values
    decoder = model.model.language_model
    decoder.layers = nn.ModuleList([decoder.layers[layer] for layer in kept])
    return model


def forward(model: PreTrainedModel, rows: Sequence) -> None:
    """The floor without gradients."""
    for batch in batches(adapted_processor(), rows, BATCH_SIZE):
        with torch.no_grad():
            model(**batch.inputs, logits_to_keep=1)


def forward_and_backward(model: PreTrainedModel, rows: Sequence) -> None:
    """The floor with gradients."""
    model.requires_grad_(False)
    model.get_input_embeddings().register_forward_hook(lambda _, __, output: output.requires_grad_(True))
    answer_loss(model, _one_batch(rows)).backward()


def _one_batch(rows: Sequence) -> Batch:
    (batch,) = batches(adapted_processor(), rows, len(rows))
    return batch


def differentiate(model: PreTrainedModel, rows: Sequence) -> None:
    """The gradients of all weights of the decoder."""
    model.requires_grad_(False)
    model.model.language_model.requires_grad_(True)
    answer_loss(model, _one_batch(rows)).backward()


def _cut(writers: Sequence[nn.Linear], reader: nn.Linear, size: int) -> None:
    scores = _product(reader).sum(dim=0) + sum(_product(writer).sum(dim=1) for writer in writers)
    units = scores.unflatten(0, (-1, size)).sum(dim=1)
    kept = units.argsort()[round(RATIO * len(units)) :].sort().values
    columns = (kept.unsqueeze(1) * size + torch.arange(size)).flatten()
    for writer in writers:
        writer.weight = nn.Parameter(writer.weight[columns])
    reader.weight = nn.Parameter(reader.weight[:, columns])


def _product(linear: nn.Linear) -> Tensor:
    return (linear.weight * linear.weight.grad).abs()


WAYS: dict[str, tuple[str, Way]] = {
    "forward and backward": ("forward and backward", forward_and_backward),
    "ours, `taylor`": ("forward and backward", partial(ours, importance="taylor")),
    "ours, `taylor`, checkpointed": (
        "forward and backward",
        partial(ours, importance="taylor", gradient_checkpointing=True),
    ),
    "ours, `taylor_group`": ("forward and backward", partial(ours, importance="taylor_group", batch_size=1)),
    "torch-pruning": ("forward and backward", by_torch_pruning),
    "all gradients": ("forward and backward", by_all_gradients),
    "forward": ("forward", forward),
    "ours, `block_influence`": ("forward", partial(ours, method="layer")),
    "all states": ("forward", by_all_states),
}


def measure(name: str, args: argparse.Namespace) -> None:
    """Print the seconds, the peak above the loaded model in sizes of its weights, and the parameters that are left."""
    torch.set_num_threads(args.threads)
    model, rows = random_model(args.layers, args.width), [synthetic_row(args.seed + row) for row in range(args.rows)]
    weights = sum(parameter.nbytes for parameter in model.parameters())
    loaded, start = peak_memory()["cpu"], time.perf_counter()
    made = WAYS[name][1](model, rows)
    seconds, peak = time.perf_counter() - start, peak_memory()["cpu"] - loaded
    left = sum(parameter.numel() for parameter in made.parameters()) if made else 0
    print(json.dumps({"seconds": seconds, "peak": peak / weights, "parameters": left}))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=10)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the rows")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--way", choices=list(WAYS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        measure(args.way, args)
        return
    found: dict[str, list[dict]] = {name: [] for name in WAYS}
    for _ in range(args.turns):
        for name, figures in found.items():
            figures.append(measured_apart("--way", name))
    print("| way | seconds | time / floor | peak above the model / weights | parameters left |\n|---|---|---|---|---|")
    seconds = {name: statistics.median(one["seconds"] for one in figures) for name, figures in found.items()}
    for name, figures in found.items():
        peak, left = max(one["peak"] for one in figures), figures[0]["parameters"]
        ratio = seconds[name] / seconds[WAYS[name][0]]
        print(f"| {name} | {seconds[name]:.1f} | {ratio:.2f} | {peak:.2f} | {f'{left:,}' if left else ''} |")


if __name__ == "__main__":
    main()
