"""The embedded example: its rows, its two models and how well they answer."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import packing
import parts
import pytest
import scenes
import torch
from datasets import load_from_disk
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from optimum_mllm_prune.evaluation import exact_match, generate_answers, reference_answers


EXAMPLE = Path(__file__).parents[2] / "examples" / "digit_scenes"
VARIANTS = {"llava": 8, "llava_gqa": 4}
PLACE = "(top left|top right|bottom left|bottom right)"


@pytest.fixture(scope="module")
def data():
    return scenes.build(train=16, test=21, seed=3)


@pytest.fixture(scope="module")
def processors():
    return {name: AutoProcessor.from_pretrained(EXAMPLE / name) for name in VARIANTS}


@pytest.fixture(scope="module")
def models():
    return {name: AutoModelForImageTextToText.from_pretrained(EXAMPLE / name) for name in VARIANTS}


def drawn_scenes(split, number, seed=0):
    rng = np.random.default_rng(seed)
    return [scenes.random_scene(rng, split) for _ in range(number)]


def answer_from(scene, question):
    """The answer worked out anew from the question's words."""
    places = re.findall(PLACE, question)
    digits = [scene[place].value for place in places if place in scene]
    if question.startswith("Which digit"):
        return str(digits[0])
    if question.startswith("What colour"):
        return scene[places[0]].colour
    if question.startswith("How many"):
        return str(sum(place in scene for place in scenes.POSITIONS))
    if question.startswith("Is there"):
        return "yes" if places[0] in scene else "no"
    if "sum" in question:
        return str(digits[0] + digits[1])
    if question.startswith("Which is larger"):
        return str(sorted(digits)[-1])
    return ", ".join(f"a {scene[p].colour} {scene[p].value} at the {p}" for p in scenes.POSITIONS if p in scene) + "."


@pytest.mark.parametrize("kind", scenes.KINDS)
def test_answers_are_right(kind):
    rng = np.random.default_rng(1)
    for scene in drawn_scenes("test", 100):
        question, answer = scenes.KINDS[kind](scene, rng)
        assert answer == answer_from(scene, question)


def test_yes_and_no_are_as_frequent_where_a_place_is_empty():
    rng = np.random.default_rng(2)
    some_empty = [scene for scene in drawn_scenes("train", 1500) if len(scene) < 4]
    answers = [scenes.exists(scene, rng)[1] for scene in some_empty]
    assert 0.45 < answers.count("yes") / len(answers) < 0.55


def test_no_scan_is_in_both_splits():
    train, test = set(scenes.scan_pool("train").tolist()), set(scenes.scan_pool("test").tolist())
    assert not train & test
    assert len(train | test) == 1797
    for split, pool in (("train", train), ("test", test)):
        used = {digit.scan for scene in drawn_scenes(split, 300) for digit in scene.values()}
        assert used <= pool


def test_scenes_show_their_scans_in_their_colours():
    (scene,) = drawn_scenes("train", 1)
    image = np.asarray(scenes.render(scene))
    assert image.shape == (32, 32, 3)
    for index, place in enumerate(scenes.POSITIONS):
        row, column = divmod(index, 2)
        cell = image[16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
        if place not in scene:
            assert not cell.any()
            continue
        ink = scenes.scans()[0][scene[place].scan][..., None] * np.array(scenes.COLOURS[scene[place].colour])
        assert np.abs(cell[::2, ::2] - ink).max() <= 0.5 + 1e-3


def test_the_same_seed_gives_the_same_rows(data):
    again, other = scenes.build(train=16, test=21, seed=3), scenes.build(train=16, test=21, seed=4)
    for split in ("train", "test"):
        assert again[split]["messages"] == data[split]["messages"]
        assert [r["images"][0].tobytes() for r in again[split]] == [r["images"][0].tobytes() for r in data[split]]
        assert other[split]["messages"] != data[split]["messages"]


def test_every_kind_comes_in_turn(data):
    assert data["test"]["kind"] == list(scenes.KINDS) * 3


def test_command_writes_a_dataset_that_loads(tmp_path):
    command = [sys.executable, str(EXAMPLE / "scenes.py"), str(tmp_path / "data")]
    subprocess.run([*command, "--train", "9", "--test", "8", "--seed", "5"], check=True, capture_output=True)
    loaded, built = load_from_disk(tmp_path / "data"), scenes.build(9, 8, 5)
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 9, "test": 8}
    assert loaded["train"]["messages"] == built["train"]["messages"]
    assert loaded["test"][0]["images"][0].size == (32, 32)
    assert loaded["test"][0]["images"][0].tobytes() == built["test"][0]["images"][0].tobytes()


@pytest.mark.parametrize("bad", [["--train", "0"], ["--test", "-1"], ["--seed", "x"]])
def test_bad_arguments_are_named(bad, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["scenes.py", str(tmp_path / "data"), *bad])
    with pytest.raises(SystemExit) as stopped:
        scenes.main()
    assert stopped.value.code == 2
    assert bad[0] in capsys.readouterr().err


@pytest.mark.parametrize(("name", "key_value_heads"), VARIANTS.items())
def test_configurations(name, key_value_heads, processors):
    config, tokenizer = AutoConfig.from_pretrained(EXAMPLE / name), processors[name].tokenizer
    assert (config.model_type, config.vision_config.model_type) == ("llava", "clip_vision_model")
    text = config.text_config
    assert (text.model_type, text.num_hidden_layers, text.num_attention_heads) == ("llama", 8, 8)
    assert text.num_key_value_heads == key_value_heads
    assert text.vocab_size == len(tokenizer)
    assert config.image_token_id == tokenizer.convert_tokens_to_ids("<image>")
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3


@pytest.mark.parametrize("name", VARIANTS)
def test_models_are_small_and_in_bfloat16(name, models):
    assert models[name].dtype == torch.bfloat16
    assert 2e6 < sum(parameter.numel() for parameter in models[name].parameters()) < 5e6


def test_both_folders_take_at_most_twelve_megabytes():
    files = [file for name in VARIANTS for file in (EXAMPLE / name).rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 12e6
    assert not [file for file in files if file.suffix in {".bin", ".pt", ".pkl"}]


@pytest.mark.parametrize("name", VARIANTS)
def test_assistant_mask_covers_the_answer_and_its_end(name, data, processors):
    processor, row = processors[name], data["test"][0]
    asked, answered = scenes.messages("Describe the image.", "a red 7 at the top left.")
    asked["content"][0] = {"type": "image", "image": row["images"][0]}
    encoded = processor.apply_chat_template(
        [asked, answered], tokenize=True, return_dict=True, return_tensors="pt", return_assistant_tokens_mask=True
    )
    answer = encoded["input_ids"][encoded["assistant_masks"].bool()]
    assert processor.tokenizer.decode(answer).strip() == "a red 7 at the top left.</s>"
    assert (encoded["input_ids"] == processor.image_token_id).sum() == parts.IMAGE_TOKENS


def test_packed_questions_equal_rows_of_their_own(models, processors):
    model, processor = models["llava_gqa"].float(), processors["llava_gqa"]
    asked, (scene,) = ["read", "caption", "sum"], drawn_scenes("train", 1)
    packed = packing.pack([scene], asked, processor.tokenizer, np.random.default_rng(7), augment=False)
    with torch.no_grad():
        together, labels = packing.logits(model, packed)
        model.set_attn_implementation("sdpa")
        rng, apart = np.random.default_rng(7), []
        for kind in asked:
            text = processor.apply_chat_template(scenes.messages(*scenes.KINDS[kind](scene, rng)), tokenize=False)
            inputs = processor(images=scenes.render(scene), text=text, return_tensors="pt")
            answer = inputs["input_ids"][0] == processor.tokenizer.convert_tokens_to_ids(parts.ASSISTANT)
            start = answer.nonzero().item()
            apart.append(model(**inputs).logits[0, start:-1])
    model.bfloat16()
    assert len(labels) == len(together)
    torch.testing.assert_close(together, torch.cat(apart), atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("name", ["llava", pytest.param("llava_gqa", marks=pytest.mark.slow)])
def test_models_answer_held_out_scenes(name, models, processors):
    rows = scenes.build(train=1, test=200, seed=11)["test"]
    answers = generate_answers(models[name], processors[name], rows)
    assert exact_match(answers, reference_answers(rows)) >= 90
