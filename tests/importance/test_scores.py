import json
from dataclasses import replace

import pytest
import torch
from families import FAMILIES
from importance.naive import subject_of
from safetensors.torch import save_file

from optimum_mllm_prune.backbone import Backbone, model_class_of
from optimum_mllm_prune.errors import UserInputError
from optimum_mllm_prune.importance import SCORES_NAME, Scores, by_layer


def some_scores(**changes):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "layers": torch.rand(4, generator=generator),
        "heads": torch.rand(4, 8, generator=generator),
        "channels": torch.rand(4, 96, generator=generator),
    }
    return Scores(tensors | changes, {"layer": "block_influence", "width": "taylor"}, "fingerprint of a model")


@pytest.mark.parametrize("by", ["folder", "file"])
def test_saved_scores_come_back(by, tmp_path):
    scores = some_scores()
    scores.save(tmp_path)
    again = Scores.load(tmp_path if by == "folder" else tmp_path / SCORES_NAME)
    assert again.metrics == {"layer": "block_influence", "width": "taylor"}
    assert again.model == "fingerprint of a model"
    assert again.fingerprint == scores.fingerprint
    assert again.tensors.keys() == scores.tensors.keys()
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in scores.tensors.items())


def test_statistics_and_weights_come_back(tmp_path):
    statistics = {"channels.squares": torch.rand(4, 3, 96, dtype=torch.float64), "layers.total": torch.rand(4, 3)}
    weights = {"image": 0.5, "prompt": 1.0, "answer": 2.0}
    scores = replace(some_scores(), statistics=statistics, modality_weights=weights)
    scores.save(tmp_path)
    again = Scores.load(tmp_path)
    assert again.modality_weights == weights
    assert again.fingerprint == some_scores().fingerprint
    assert again.tensors.keys() == {"layers", "heads", "channels"}
    assert again.statistics.keys() == statistics.keys()
    assert all(torch.equal(again.statistics[name], tensor) for name, tensor in statistics.items())


def test_missing_values_come_back(tmp_path):
    scores = some_scores(heads=torch.tensor([[float("nan")] * 2, [1.0, 2.0]]))
    scores.save(tmp_path)
    again = Scores.load(tmp_path)
    torch.testing.assert_close(again.tensors["heads"], scores.tensors["heads"], equal_nan=True)
    assert again.fingerprint == scores.fingerprint


def test_the_fingerprint_tells_names_shapes_and_values_apart():
    values = torch.arange(6.0)
    variants = [
        Scores({"heads": values.reshape(2, 3)}),
        Scores({"heads": values.reshape(3, 2)}),
        Scores({"channels": values.reshape(2, 3)}),
        Scores({"heads": values.flip(0).reshape(2, 3)}),
    ]
    assert len({scores.fingerprint for scores in variants}) == len(variants)
    assert variants[0].fingerprint == Scores({"heads": values.clone().reshape(2, 3)}, {"width": "other"}).fingerprint
    assert len(variants[0].fingerprint) == 64


def test_no_scores(tmp_path):
    with pytest.raises(UserInputError, match=r"no scores at '.*': give a pruning_scores\.safetensors or the folder"):
        Scores.load(tmp_path)


def test_damaged_weights(tmp_path):
    save_file({"layers": torch.ones(2)}, tmp_path / SCORES_NAME, metadata={"modality_weights": "{image"})
    with pytest.raises(UserInputError, match=r"^the scores in 'pruning_scores\.safetensors' cannot be read \(.*\): "):
        Scores.load(tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_damaged_scores(damage, tmp_path):
    some_scores().save(tmp_path)
    file = tmp_path / SCORES_NAME
    content = file.read_bytes()
    file.write_bytes({"truncated": content[:200], "empty": b"", "text": json.dumps({"a": 1}).encode() * 9}[damage])
    reason = r"the scores in 'pruning_scores\.safetensors' cannot be read \(.*\): calibrate again\."
    with pytest.raises(UserInputError, match=reason) as raised:
        Scores.load(tmp_path)
    assert "\n" not in str(raised.value)


def test_layers_without_a_block_have_no_number():
    (group,) = (g for g in subject_of(FAMILIES["qwen3_5"].build()).groups if g.kind == "heads")
    rows = torch.arange(8.0).reshape(2, 4)
    (scores,) = by_layer(group, rows, 6).items()
    assert scores[0] == "heads"
    assert scores[1].isnan().all(dim=1).tolist() == [True, True, False, True, True, False]
    assert torch.equal(Scores(dict([scores])).of(group), rows)


def test_blocks_outside_the_decoder_are_kept_apart():
    (group,) = (g for g in subject_of(FAMILIES["llava_llama_gqa"].build()).groups if g.kind == "heads")
    inside = group.sites[:2]
    outside = replace(group.sites[2], layer=None)
    group = group.with_sites([*inside, outside])
    rows = torch.arange(12.0).reshape(3, 4)
    tensors = by_layer(group, rows, 4)
    assert tensors["heads"].shape == (4, 4)
    assert torch.equal(tensors["heads_outside"], rows[2:])
    assert torch.equal(Scores(tensors).of(group), rows)


class TestOf:
    """Scores by site, refused where they are not of the group."""

    @pytest.fixture
    def backbone(self):
        config = FAMILIES["llava_llama_gqa"].config()
        return Backbone(model_class_of(config), config)

    def test_one_row_for_each_site(self, backbone):
        scores = some_scores(heads=torch.rand(4, 4))
        assert torch.equal(scores.of(backbone.heads), scores.tensors["heads"])
        assert torch.equal(scores.of_layers(4), scores.tensors["layers"])

    def test_scores_of_query_heads_for_groups(self, backbone):
        with pytest.raises(UserInputError) as error:
            some_scores().of(backbone.heads)
        assert str(error.value) == (
            "the scores are of 8 heads in each of 4 blocks, the plan is of 4 (key-value groups) in 4: take the head "
            "unit they were made with, or calibrate again."
        )

    @pytest.mark.parametrize("tensor", [None, torch.rand(3, 4), torch.rand(4)])
    def test_there_are_none(self, backbone, tensor):
        tensors = {name: kept for name, kept in some_scores(heads=tensor).tensors.items() if kept is not None}
        with pytest.raises(UserInputError, match=r"^the scores hold no heads of every layer: calibrate again\.$"):
            Scores(tensors).of(backbone.heads)

    @pytest.mark.parametrize("tensors", [{}, {"layer_runs": torch.rand(3, 3)}, {"layer_runs": torch.rand(4)}])
    def test_of_runs(self, tensors):
        with pytest.raises(UserInputError) as told:
            Scores(tensors).of_runs(4)
        assert str(told.value) == "the scores hold no score for each run of 4 layers: calibrate again."
        runs = torch.rand(4, 4)
        assert Scores({"layer_runs": runs}).of_runs(4) is runs

    @pytest.mark.parametrize("tensors", [{}, {"layers": torch.rand(3)}])
    def test_no_layers(self, tensors):
        with pytest.raises(UserInputError, match=r"^the scores hold no score for each of 4 layers: calibrate again"):
            Scores(tensors).of_layers(4)
