"""`--max-memory`: a model whose layers stay on disk, by the command; and what is wrong with a limit."""

import json

import pytest

from optimum_mllm_prune import placement


@pytest.fixture
def nothing_taken(monkeypatch):
    """Only the weights count: the interpreter alone takes many times what these small models do."""
    monkeypatch.setattr(placement, "taken_bytes", lambda device: 0)


def test_it_is_pruned_from_disk(command, llava, rows, cwd, nothing_taken, caplog):
    done = command(
        "--model", llava, "out", "--ratio", "0.3", "--importance", "wanda", "--dataset", rows, "--max-memory", "8MB"
    )
    assert done.code == 0, done.err
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "Not repaired: some weights are offloaded, and a repair needs them all in memory."
    ]
    assert "generation with and without cache not compared" in done.out
    report = json.loads((cwd / "out" / "pruning_report.json").read_text())
    assert report["verification"]["max_abs_logit_difference"] == 0
    assert report["repair"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--max-memory", "little"),
            "'little' is not a size: write 6GB (a GB is 10^9 bytes), 6GiB (a GiB is 2^30) or a number of bytes.",
        ),
        (
            ("--max-memory", "6GB", "--device-map", "auto"),
            "device_map and max_memory both say what is in memory: give one of them.",
        ),
        (
            ("--max-memory", "100kB"),
            "0.10 MB of memory are too little: one decoder layer and all that stays take 2.65 MB, ",
        ),
    ],
)
def test_what_is_wrong_is_one_line(refused, llava, nothing_taken, words, message):
    assert refused("--model", llava, "out", "--importance", "magnitude_l2", *words).startswith(message)


def test_sizes_alone_need_no_memory(refused, llava):
    told = refused("--model", llava, "--dry-run", "--max-memory", "6GB")
    assert told == ("--dry-run without a --dataset shows sizes alone: leave --max-memory out, or name a --dataset.")
