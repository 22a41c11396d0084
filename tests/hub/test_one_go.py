"""All the way by one command: pruned, recovered, measured, documented, pushed; and broken off at every stage."""

import json
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
import scenes
from hub.conftest import TOKEN, settings
from hub.test_round_trip import DIGITS, STRANGER
from huggingface_hub import ModelCard
from safetensors.torch import load_file


PROGRAM = Path(sysconfig.get_path("scripts")) / "optimum-cli"
WORDS = ["--model", "me/base", "out", "--target-params", "2.2M", "--dataset", "rows", "--num-samples", "4"]
WORDS += ["--recover", "lora", "--recover-set", "max_steps=4", "save_steps=1", "per_device_train_batch_size=4"]
WORDS += ["--eval-dataset", "rows", "--eval-split", "test", "--eval-by", "kind", "--eval-efficiency"]
WORDS += ["--device", "cpu", "--push-to-hub", "--repo-id", "me/whole", "--private"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("user")
    scenes.build(train=24, test=14, seed=9).save_to_disk(folder / "rows")
    return folder


@pytest.fixture(scope="module")
def env(module_hub, home):
    module_hub.share("me/base", DIGITS, [("file", "README.md", b"---\nlicense: mit\n---\n")])
    return settings(module_hub, home)


def run(home, env):
    return subprocess.run([PROGRAM, "mllm-prune", *WORDS], capture_output=True, text=True, cwd=home, env=env)


def killed_when(home, env, came):
    """Start the command and kill it as soon as something lies in the folder."""
    running = subprocess.Popen(
        [PROGRAM, "mllm-prune", *WORDS], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=home, env=env
    )
    while not came():
        assert running.poll() is None, "it was done before it could be killed"
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.wait()


@pytest.mark.slow
def test_all_the_way_broken_off_at_every_stage(module_hub, home, env, tmp_path):
    # Killed in the training: the pruned checkpoint stands, the training goes on.
    killed_when(home, env, lambda: list((home / "out.training").glob("checkpoint-*/trainer_state.json")))
    pruned = (home / "out.pruned" / "model.safetensors").stat().st_mtime_ns
    assert not (home / "out").exists()
    # Killed in the evaluation: the recovered checkpoint stands.
    killed_when(home, env, lambda: (home / "out" / "README.md").is_file() and not (home / "out.pruned").exists())
    made = (home / "out" / "model.safetensors").stat().st_mtime_ns
    assert made > pruned
    # The Hub refuses: the evaluated checkpoint stands.
    module_hub.fail("POST", "/api/repos/create", 403)
    done = run(home, env)
    assert done.returncode == 2
    assert "Made already: out." in done.stdout and "Evaluated already" not in done.stdout
    measured = (home / "out" / "evaluation.json").stat().st_mtime_ns
    module_hub.faults.clear()
    # And all the way; then once more, which changes nothing.
    for _ in range(2):
        done = run(home, env)
        assert done.returncode == 0, done.stderr
        assert "Made already: out." in done.stdout and "Evaluated already" in done.stdout
    assert (home / "out" / "model.safetensors").stat().st_mtime_ns == made
    assert (home / "out" / "evaluation.json").stat().st_mtime_ns == measured
    repository = module_hub.repositories["me/whole"]
    (commit,) = repository.history()
    assert repository.private
    assert commit.operations[-1] == ("file", "README.md")
    assert sorted(path.name for path in home.iterdir()) == ["home", "out", "rows"]
    check_what_is_shared(commit, home)
    check_what_a_stranger_gets(home, env, tmp_path)


def check_what_is_shared(commit, home):
    files = {name: file.data for name, file in commit.files.items() if name != ".gitattributes"}
    assert files == {path.name: path.read_bytes() for path in (home / "out").iterdir()}
    card = ModelCard(files["README.md"].decode())
    assert (card.data.base_model, card.data.license) == ("me/base", "mit")
    assert {"pruning", "recovered"} <= set(card.data.tags)
    assert {result.metric_type for result in card.data.eval_results} >= {"exact_match", "decode_tokens_per_second"}
    for heading in ("What was removed", "How it was made", "Recovery", "Evaluation", "Verification", "Citation"):
        assert f"\n## {heading}\n" in card.text
    report = json.loads(files["pruning_report.json"])
    assert {"verification", "recovery", "evaluation"} <= report.keys()
    assert report["evaluation"]["dataset"]["rows"] == 14
    for name, content in files.items():
        assert TOKEN.encode() not in content, name
        assert str(home).encode() not in content, name


def check_what_a_stranger_gets(home, env, folder):
    for source, answer in (("me/whole", "hub.safetensors"), (str(home / "out"), "local.safetensors")):
        subprocess.run([sys.executable, "-c", STRANGER, source, str(folder / answer)], env=env, check=True)
    ours, theirs = load_file(folder / "local.safetensors"), load_file(folder / "hub.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)
