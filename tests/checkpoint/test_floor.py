"""The least time of a stage: its work at the machine's own rates."""

import pytest
import torch
from checkpoint import tiny_llava

from optimum_mllm_prune.backbone import Backbone
from optimum_mllm_prune.checkpoint.floor import disk_rates, floor_seconds, product_rate


RATES = {"operations_per_second": 1e9, "bytes_read_per_second": 1e6, "bytes_written_per_second": 5e5}
PARAMETERS = {"backbone_before": 1000, "backbone_after": 600}
SIZES = {"before": 4_000_000, "after": 3_000_000}


def floor(calibration=None, repair=None):
    return floor_seconds(RATES, Backbone.of(tiny_llava.model()), PARAMETERS, SIZES, calibration, repair)


def seconds_a_token():
    """Of all projections of the decoder layers, read off the modules."""
    layers = tiny_llava.model().get_decoder().layers
    return 2 * sum(m.weight.numel() for m in layers.modules() if isinstance(m, torch.nn.Linear)) / 1e9


def test_without_rows_it_is_reading_and_writing():
    assert floor() == {"load": 4.0, "saving": 6.0, "verification": 3.0}


@pytest.mark.parametrize(
    ("importance", "processes", "passes"),
    [("activation", 1, 1), ("block_influence", 1, 1), ("loss", 1, 1), ("taylor", 1, 2), ("taylor_group", 2, 1)],
)
def test_calibration_is_passes_over_its_tokens(importance, processes, passes):
    tokens = {"image": 160, "prompt": 90, "answer": 40}
    found = floor({"tokens": tokens, "processes": processes, "importance": importance})
    assert found["calibration"] == pytest.approx(passes * 290 * seconds_a_token())


def test_a_repair_runs_the_original_and_what_is_left():
    assert floor(repair={"tokens": 100})["repair"] == pytest.approx(1.6 * 100 * seconds_a_token())


def test_merged_layers_are_no_pass():
    assert "repair" not in floor(repair={"method": "merge", "merged": {}})


def test_matrices_are_no_larger_than_memory_lets_them(monkeypatch):
    multiply, sides = torch.mm, []

    def mm(one, other):
        sides.append(len(one))
        if len(one) > 256:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return multiply(one, other)

    monkeypatch.setattr(torch, "mm", mm)
    monkeypatch.setattr("optimum_mllm_prune.checkpoint.floor._LONG_ENOUGH", 1e9)
    assert product_rate(tiny_llava.model())["operations_per_second"] > 0
    assert sides == [256, 256, 256, 512]


def test_the_rates_of_this_machine(tmp_path):
    found = product_rate(tiny_llava.model()) | disk_rates(tmp_path)
    assert found.keys() == RATES.keys() and min(found.values()) > 0
    assert not list(tmp_path.iterdir())
