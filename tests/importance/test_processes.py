"""Two real processes on a CPU find what one does."""

import json
import sys
from pathlib import Path

import pytest
import torch
from importance import score_tiny
from launching import LAUNCH, TWO, launched

from optimum_mllm_prune.importance import Scores


SCRIPT = Path(score_tiny.__file__)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Folders of what one process and what two find."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    launched([sys.executable, SCRIPT, one])
    launched([*LAUNCH, *TWO, SCRIPT, two])
    return one, two


@pytest.mark.parametrize("name", score_tiny.WISHES)
def test_scores_are_those_of_one_process(found, name):
    one, two = (Scores.load(folder / name) for folder in found)
    assert one.tensors.keys() == two.tensors.keys()
    # Where two units err almost alike, rounding decides which goes first, and each then has the other's error.
    atol = 1e-4 if name == "reconstruction" else 1e-7
    for kind, scores in one.tensors.items():
        torch.testing.assert_close(two.tensors[kind], scores, rtol=2e-4, atol=atol, equal_nan=True)
    told_of_one, told_of_two = (json.loads((folder / "told.json").read_text())[name] for folder in found)
    assert (told_of_one.pop("processes"), told_of_two.pop("processes")) == (1, 2)
    assert told_of_one | {"batch_size": told_of_two["batch_size"]} == told_of_two


def test_more_processes_than_rows(found):
    one, two = (json.loads((folder / "told.json").read_text()) for folder in found)
    assert not {"too few", "too few of a kind"} & one.keys()
    assert two["too few"] == "2 processes cannot share 1 calibration rows: start fewer, or give more rows."
    assert two["too few of a kind"] == (
        "2 processes cannot share 1 rows of a batch of importance 'taylor': start fewer, or choose importance "
        "'taylor_group', whose batches can be dealt out."
    )
