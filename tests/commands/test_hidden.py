"""`--method hidden` on the command line: all the way, sizes alone, replayed, and what does not go with it."""

import json

import pytest
import torch
from checkpoint import tiny_llava
from commands.test_end_to_end import BACKBONE_BEFORE, LLAVA_7B, optimum_cli, plan_of, report_of, text_config
from safetensors.torch import load_file


HIDDEN = ("--method", "hidden")
SIZE = 160


@pytest.mark.slow
def test_all_the_way(llava, rows, tmp_path):
    words = ["--model", llava, "out", *HIDDEN, "--ratio", "0.2", "--dataset", rows, "--num-samples", "6"]
    done = optimum_cli(*words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    out = tmp_path / "out"
    report, plan = report_of(out), plan_of(out)
    assert report["verification"]["max_abs_logit_difference"] == 0.0
    assert report["verification"]["without_package"]
    assert report["verification"]["inputs"] == "image + text"
    assert report["calibration"]["importance"] == "activation"
    assert report["repair"]["method"] == "least-squares" and report["repair"]["rows"] == 12
    kept = text_config(out)["hidden_size"]
    assert kept == SIZE - len(plan["removed_hidden"]) == 128
    assert abs(report["ratio"]["achieved"] - 0.2) < 0.001
    assert BACKBONE_BEFORE - report["parameters"]["backbone_after"] == round(0.2 * BACKBONE_BEFORE)
    assert [len(units) for units in plan["removed_projector"].values()] == [SIZE - kept]
    assert len(plan["norm_factors"]) == 2 * tiny_llava.LAYERS + 1
    weights = load_file(out / "model.safetensors")
    assert report["parameters"]["after"] == sum(tensor.numel() for tensor in weights.values())
    scores = load_file(out / "pruning_scores.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in scores.items() if "." not in name} == {
        "hidden": (SIZE,),
        "hidden_energy": (2 * tiny_llava.LAYERS + 1, SIZE),
        "projector": (1, SIZE),
        "layers": (tiny_llava.LAYERS,),
        "heads": (tiny_llava.LAYERS, tiny_llava.KV_HEADS),
        "channels": (tiny_llava.LAYERS, tiny_llava.CHANNELS),
    }
    card = (out / "README.md").read_text()
    assert f"| hidden size | {SIZE} | {kept} | 20.0 % |" in card
    assert "`pruning_importance.png`" in card or "](pruning_importance.png)" in card


def test_sizes_of_a_large_model_from_its_config(command, cwd):
    (cwd / "llava-1.5-7b-hf").mkdir()
    (cwd / "llava-1.5-7b-hf" / "config.json").write_text(json.dumps(LLAVA_7B))
    done = command("--model", "llava-1.5-7b-hf", "--dry-run", *HIDDEN, "--ratio", "0.25")
    assert done.code == 0, done.err
    assert "hidden size: 4096 -> 3072 in all layers, embeddings, head and projector, rounded to a multiple of 64" in (
        done.out
    )
    assert "config: hidden_size = 3072" in done.out
    assert "backbone removed: 25.00 %" in done.out


@pytest.mark.usefixtures("unverified")
def test_a_plan_is_carried_out_and_its_scores_serve_other_methods(command, llava, cwd):
    words = (*HIDDEN, "--importance", "magnitude_l2", "--dry-run")
    assert command("--model", llava, "dry", *words).code == 0
    assert command("--model", llava, "out", "--plan", "dry").code == 0
    assert plan_of(cwd / "out")["removed_hidden"] == plan_of(cwd / "dry")["removed_hidden"]
    other = ("--scores", "dry", "--method", "layer", "--importance", "magnitude", "--num-layers", "1")
    assert command("--model", llava, "shallow", *other).code == 0
    assert len(plan_of(cwd / "shallow")["removed_layers"]) == 1
    again = (*HIDDEN, "--scores", "dry", "--importance", "magnitude_l2", "--ratio", "0.4")
    assert command("--model", llava, "narrower", *again).code == 0
    weakest = load_file(cwd / "dry" / "pruning_scores.safetensors")["hidden"].argsort()[:64]
    assert plan_of(cwd / "narrower")["removed_hidden"] == torch.sort(weakest).values.tolist()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--head-unit", "query"), "--head-unit has no effect with method 'hidden': leave it out."),
        (("--head-share", "0.5"), "--head-share has no effect with method 'hidden': leave it out."),
        (("--channel-multiple", "8"), "--channel-multiple has no effect with method 'hidden': leave it out."),
        (("--no-twin",), "--no-twin has no effect with method 'hidden': leave it out."),
        (("--protect-layers", "1"), "--protect-layers has no effect with method 'hidden': leave it out."),
        (("--layer-share", "0.2"), "--layer-share has no effect with method 'hidden': leave it out."),
        (("--hidden-share", "0.2"), "--hidden-share has no effect with method 'hidden': leave it out."),
        (
            ("--repair", "linear-map"),
            "repair 'linear-map' stands in for removed layers: with method 'hidden' use another repair.",
        ),
        (
            ("--importance", "taylor"),
            "importance 'taylor' does not score what method 'hidden' removes: use one of activation, magnitude_l2, "
            "random.",
        ),
        (
            ("--importance", "magnitude_l2", "--ratio", "0.01"),
            "ratio 0.0100 removes nothing: less than half a step of this architecture, ask for more.",
        ),
        (
            ("--num-layers", "2"),
            "num_layers removes whole layers: use it with method 'layer', or give a ratio.",
        ),
    ],
)
def test_what_does_not_go_with_it(refused, llava, rows, words, line):
    assert refused("--model", llava, "out", *HIDDEN, *words) == line
