"""A calibration that was broken off goes on from what it had found, and ends with the same scores."""

import math

import pytest
import torch
from checkpoint import tiny_llava
from importance.score_tiny import WISHES, mixed_rows

from optimum_mllm_prune import MLLMPruner
from optimum_mllm_prune.backbone import Backbone
from optimum_mllm_prune.calibration import progress
from optimum_mllm_prune.calibration.progress import Progress
from optimum_mllm_prune.configuration import PruningConfig
from optimum_mllm_prune.errors import UserInputError
from optimum_mllm_prune.importance.scoring import score


SMALL_BATCHES = {name: {"batch_size": 2} for name in WISHES if name not in ("taylor_second", "taylor_mixed")}


class BrokenOffError(Exception):
    pass


@pytest.fixture
def always(monkeypatch):
    """Everything is written at once."""
    monkeypatch.setattr(progress, "EVERY", 0.0)


@pytest.fixture
def forwards():
    """How often decoder layers have run, and at which of these times one fails; makes the model that counts."""
    seen = {"runs": 0, "fail at": math.inf}

    def count(*_):
        seen["runs"] += 1
        if seen["runs"] >= seen["fail at"]:
            raise BrokenOffError

    def model():
        made = tiny_llava.moved(0.01)
        for layer in made.model.language_model.layers:
            layer.register_forward_hook(count)
        return made

    return seen, model


def found(model, name, file, **more):
    config = PruningConfig(**WISHES[name] | SMALL_BATCHES.get(name, {}) | more)
    return score(model, tiny_llava.processor(), Backbone.of(model), config, mixed_rows(), file)[0]


@pytest.mark.parametrize("name", WISHES)
def test_what_was_found_is_not_found_again(name, tmp_path, always, forwards):
    seen, model = forwards
    file = tmp_path / "calibration"
    undisturbed = found(model(), name, None)
    needed = seen["runs"]
    assert not file.exists()
    seen.update({"runs": 0, "fail at": needed // 2})
    with pytest.raises(BrokenOffError):
        found(model(), name, file)
    assert file.is_file()
    seen.update({"runs": 0, "fail at": math.inf})
    again = found(model(), name, file)
    assert seen["runs"] < needed
    for kind, scores in undisturbed.tensors.items():
        torch.testing.assert_close(again.tensors[kind], scores, rtol=1e-5, atol=1e-9, equal_nan=True)
    for kind, sums in undisturbed.statistics.items():
        torch.testing.assert_close(again.statistics[kind], sums)


@pytest.mark.parametrize("name", ["wanda", "taylor_mixed", "reconstruction", "loss"])
def test_what_is_finished_takes_no_pass(name, tmp_path, always, forwards):
    seen, model = forwards
    file = tmp_path / "calibration"
    first = found(model(), name, file)
    seen.update({"runs": 0})
    second = found(model(), name, file)
    # The walk tries whether layers can be skipped; the greedy ones look at the form of what layers give.
    assert seen["runs"] <= 3 * tiny_llava.LAYERS
    assert first.tensors.keys() == second.tensors.keys()
    assert all(
        torch.equal(first.tensors[kind].nan_to_num(), second.tensors[kind].nan_to_num()) for kind in first.tensors
    )


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"importance": "activation"}, {"batch_size": 3}, {"num_samples": 4}], ids=str
)
def test_another_calibration_begins_anew(other, tmp_path, always, forwards):
    seen, model = forwards
    found(model(), "wanda", tmp_path / "calibration")
    seen.update({"runs": 0})
    found(model(), "wanda", None, **other)
    needed = seen["runs"]
    seen.update({"runs": 0})
    found(model(), "wanda", tmp_path / "calibration", **other)
    assert seen["runs"] == needed


def test_another_model_begins_anew(tmp_path, always, forwards):
    seen, model = forwards
    found(model(), "wanda", tmp_path / "calibration")
    needed, other = seen["runs"], model()
    with torch.no_grad():
        other.model.language_model.layers[3].mlp.down_proj.weight += 0.1
    seen.update({"runs": 0})
    found(other, "wanda", tmp_path / "calibration")
    assert seen["runs"] == needed


def test_what_is_quickly_found_is_not_written(tmp_path):
    model = tiny_llava.moved(0.01)
    found(model, "wanda", tmp_path / "calibration")
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_written_anew(tmp_path, always):
    file = tmp_path / "calibration"
    file.write_bytes(b"no tensors")
    model = tiny_llava.moved(0.01)
    found(model, "wanda", file)
    assert Progress(file, "another").of("passes") is None
    assert file.stat().st_size > 1000


def test_a_folder_that_cannot_be_written(tmp_path, always):
    (tmp_path / "file").write_text("")
    model = tiny_llava.moved(0.01)
    with pytest.raises(
        UserInputError, match=r"^'.*/file/calibration' cannot be written \(.+\): choose another output.$"
    ):
        found(model, "wanda", tmp_path / "file" / "calibration")


def test_a_pruner_keeps_what_it_scores(tmp_path, always, forwards):
    _, model = forwards
    pruner = MLLMPruner(model(), tiny_llava.processor())
    pruner.resume_file = tmp_path / "calibration"
    pruner.plan(PruningConfig(**WISHES["wanda"]), mixed_rows())
    assert (tmp_path / "calibration").is_file()
