import pytest
import torch
from checkpoint import tiny_llava
from families import FAMILIES

from optimum_mllm_prune.errors import UserInputError
from optimum_mllm_prune.evaluation.efficiency.size import PARTS, disk_bytes, size_of, weight_parts


# Hidden size, head size, and what the vision tower's is.
HIDDEN, HEAD_DIM, VISION = 160, 20, 96


def test_parts_of_a_llava_by_hand():
    model = tiny_llava.model()
    heads, kv, channels, layers = (tiny_llava.HEADS, tiny_llava.KV_HEADS, tiny_llava.CHANNELS, tiny_llava.LAYERS)
    vocabulary = model.config.text_config.vocab_size
    parts = weight_parts(model)
    assert tuple(parts) == PARTS
    assert parts["embeddings"] == parts["head"] == 4 * vocabulary * HIDDEN
    assert parts["attention"] == 4 * layers * HIDDEN * HEAD_DIM * 2 * (heads + kv)
    assert parts["MLP"] == 4 * (layers * (3 * HIDDEN * channels + 2 * HIDDEN) + HIDDEN)
    assert parts["projector"] == 4 * ((VISION + 1) * HIDDEN + (HIDDEN + 1) * HIDDEN)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_whole_of_a_model(dtype):
    model = tiny_llava.model().to(dtype)
    size = size_of(model)
    assert size.parameters == sum(p.numel() for p in model.parameters())
    assert size.weight_bytes == sum(size.parts.values()) == size.parameters * dtype.itemsize
    assert size.disk_bytes is None


# Tied, experts, linear attention, cross attention, a merger inside the tower, parallel blocks.
@pytest.mark.parametrize("name", ["llava_llama_tied", "qwen3_5_moe", "mllama", "qwen2_vl", "llava_phi", "lfm2_vl"])
def test_parts_add_up(name):
    model = FAMILIES[name].build()
    parts = weight_parts(model)
    assert sum(parts.values()) == sum(p.nbytes for p in model.parameters())
    assert all(parts[part] > 0 for part in ("vision tower", "embeddings", "attention", "MLP"))


def test_a_tied_head_takes_nothing():
    assert weight_parts(FAMILIES["llava_llama_tied"].build())["head"] == 0
    assert weight_parts(FAMILIES["llava_llama"].build())["head"] > 0


@pytest.mark.parametrize("shard_size", ["2MB", "5GB"])
def test_bytes_on_disk(tmp_path, shard_size):
    tiny_llava.model().save_pretrained(tmp_path, max_shard_size=shard_size)
    files = list(tmp_path.glob("*.safetensors"))
    assert (len(files) > 1) == (shard_size == "2MB")
    written = sum(file.stat().st_size for file in files)
    # What a pruned model's folder holds beside its weights.
    (tmp_path / "pruning_scores.safetensors").write_bytes(b"0" * 1000)
    size = size_of(tiny_llava.model(), tmp_path)
    assert size.disk_bytes == written > size.weight_bytes


def test_a_folder_without_weights(tmp_path):
    (tmp_path / "pruning_scores.safetensors").write_bytes(b"0")
    with pytest.raises(UserInputError) as error:
        disk_bytes(tmp_path)
    assert str(error.value) == f"'{tmp_path}' holds no model.safetensors: give the folder of a saved model."
