"""What `--search` tries on digit scenes, and what each plan answers on rows that neither calibration nor choice saw.

    python benchmarks/search.py

Prints a table: of every plan the share of the backbone that goes, its perplexity on the rows that decide, and the
exact match on other rows, repaired and as it was cut.
"""

import argparse

import torch
from study_runs import MODEL, scenes

from optimum_mllm_prune import MLLMPruner, PruningConfig
from optimum_mllm_prune.calibration.rows import load_rows
from optimum_mllm_prune.evaluation import exact_match, generate_answers, reference_answers
from optimum_mllm_prune.repair import repair
from optimum_mllm_prune.search import search
from optimum_mllm_prune.surgery import pruned_model


REPAIR_ROWS = 128


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--importance", default="taylor")
    parser.add_argument("--num-samples", type=int, default=10, help="rows to calibrate on (10)")
    parser.add_argument("--search-rows", type=int, default=64, help="rows that decide (64)")
    parser.add_argument("--test-rows", type=int, default=300, help="rows that are answered (300)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    pruner, data = MLLMPruner.from_pretrained(str(MODEL), device="cpu"), scenes.build(1280, args.test_rows, args.seed)
    rows, test = load_rows(data["train"], None, REPAIR_ROWS + args.search_rows, args.seed), data["test"]
    to_repair, to_decide = rows[:REPAIR_ROWS], rows[REPAIR_ROWS:]
    original, backbone = pruner.model, pruner.backbone()

    def answered(model: torch.nn.Module) -> str:
        return f"{exact_match(generate_answers(model, pruner.processor, test), reference_answers(test)):.1f} %"

    config = PruningConfig(ratio=args.ratio, importance=args.importance)
    found = search(
        pruner, config, to_repair[: args.num_samples], to_decide, measure_speed=False, repair_rows=to_repair
    )
    print(f"| plan | removed | perplexity, {len(to_decide)} rows | exact match, {len(test)} others | not repaired |")
    print("|---" * 5 + "|")
    print(f"| original | | {found.original.value:.3f} | {answered(original)} | |", flush=True)
    for one in found.tried:
        made = pruned_model(original, backbone, one.plan, keep_original=True)
        cut = answered(made)
        repair(original, made, backbone, one.plan, pruner.processor, to_repair)
        removed = f"{100 * one.plan.ratio['achieved']:.1f} %"
        print(f"| {one.name} | {removed} | {one.perplexity.value:.3f} | {answered(made)} | {cut} |", flush=True)


if __name__ == "__main__":
    main()
