"""The real command from the Hub and to it, and what anybody loads from there."""

import json
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest
from hub.conftest import TOKEN, settings
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from optimum_mllm_prune import MLLMPruner


PROGRAM = Path(sysconfig.get_path("scripts")) / "optimum-cli"
DIGITS = Path(__file__).parents[2] / "examples" / "digit_scenes" / "llava"
# What a stranger does: no package of ours, one question about one picture.
STRANGER = """
import sys
sys.modules["optimum_mllm_prune"] = None
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

source, answer = sys.argv[1:]
model, processor = AutoModelForImageTextToText.from_pretrained(source), AutoProcessor.from_pretrained(source)
image = Image.linear_gradient("L").convert("RGB")
messages = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "what is this"}]}]
inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits
weights = {name: value.clone() for name, value in model.state_dict().items()}
save_file({**weights, "logits": logits}, answer)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("user")


@pytest.fixture(scope="module")
def env(module_hub, home):
    return settings(module_hub, home)


@pytest.fixture(scope="module")
def base(module_hub):
    """The model as somebody shares it."""
    card = ("file", "README.md", b"---\nlicense: mit\n---\n")
    return module_hub.share("me/base", DIGITS, [card])


@pytest.fixture(scope="module")
def pushed(module_hub, base, home, env):
    """Pruned from the Hub, pushed to the Hub; gives the commit."""
    words = ["--model", "me/base", "out", "--ratio", "0.2", "--importance", "magnitude_l2"]
    done = mllm_prune(*words, "--push-to-hub", "--repo-id", "me/it", "--private", folder=home, env=env)
    assert done.returncode == 0, done.stderr
    (commit,) = module_hub.repositories["me/it"].history()
    assert done.stdout.splitlines()[-1] == f"Pushed: {module_hub.url}/me/it/commit/{commit.oid}"
    return commit


def mllm_prune(*words, folder, env):
    return subprocess.run([PROGRAM, "mllm-prune", *words], capture_output=True, text=True, cwd=folder, env=env)


def test_all_of_the_folder_is_there_byte_by_byte(module_hub, pushed, home):
    made = {path.name: path.read_bytes() for path in (home / "out").iterdir()}
    assert {"model.safetensors", "pruning_plan.json", "pruning_report.json", "processor_config.json"} <= made.keys()
    assert made == {name: file.data for name, file in pushed.files.items() if name != ".gitattributes"}
    assert pushed.operations[-1] == ("file", "README.md")
    assert module_hub.repositories["me/it"].private


def test_commit_and_card_say_what_it_is(pushed, base):
    report = json.loads(pushed.files["pruning_report.json"].data)["parameters"]
    assert pushed.message == f"Pruned checkpoint: {report['after']:,} of {report['before']:,} parameters"
    card = ModelCard(pushed.files["README.md"].data.decode())
    assert card.data.base_model == "me/base"
    assert card.data.license == "mit"
    assert json.loads(pushed.files["pruning_plan.json"].data)["model"]["base_model_revision"] == base.oid


def test_no_token_and_no_path_in_anything_that_was_pushed(module_hub, pushed, home):
    everything = [*module_hub.sent, *(file.data for file in pushed.files.values())]
    for secret in (TOKEN, str(home)):
        assert not any(secret.encode() in content for content in everything)


def test_a_stranger_gets_the_same_model(module_hub, pushed, home, env):
    answers = []
    for source in ("me/it", home / "out"):
        answer = home / f"{len(answers)}.safetensors"
        subprocess.run([sys.executable, "-c", STRANGER, source, answer], check=True, cwd=home, env=env)
        answers.append(load_file(answer))
    pulled, local = answers
    assert pulled.keys() == local.keys()
    assert "logits" in local
    assert all(pulled[name].equal(local[name]) for name in local)


@pytest.mark.slow
def test_a_push_that_is_refused_is_one_line_and_keeps_the_checkpoint(tmp_path, env):
    words = ["--model", DIGITS, "out", "--importance", "magnitude_l2", "--push-to-hub", "--repo-id", "you/it"]
    done = mllm_prune(*words, "--private", "--push-revision", "next", folder=tmp_path, env=env)
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if line.strip() and "%|" not in line]
    assert said == [
        "optimum-cli mllm-prune: error: the checkpoint 'out' is complete but could not be pushed to 'you/it': the "
        "token has no right to write there: take one that may write, or a namespace of yours; push it with "
        "`hf upload you/it out --private --revision next`."
    ]
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_the_advice_of_that_line_works(hub, checkpoint, environment):
    words = [PROGRAM.with_name("hf"), "upload", "me/it", checkpoint, "--private", "--revision", "next"]
    subprocess.run(words, check=True, capture_output=True, env=environment)
    repository = hub.repositories["me/it"]
    assert repository.private
    assert repository.file("next", "config.json").data == (checkpoint / "config.json").read_bytes()


@pytest.mark.usefixtures("client")
def test_from_python(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def save(folder):
        folder.mkdir()
        (folder / "config.json").write_text("{}")

    address = MLLMPruner.push_to_hub(SimpleNamespace(save_pretrained=save), "me/it", True, TOKEN, "next")
    repository = hub.repositories["me/it"]
    assert address.endswith(f"/me/it/commit/{repository.branches['next']}")
    assert repository.private
    assert list(tmp_path.iterdir()) == []
