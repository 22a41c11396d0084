"""No token and no local path in what others read."""

import json
from dataclasses import replace

import pytest
from checkpoint import tiny_llava
from checkpoint.test_report_and_card import CALIBRATION, SIZES, report_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optimum_mllm_prune import MLLMPruner, PruningConfig
from optimum_mllm_prune.checkpoint import model_card
from optimum_mllm_prune.checkpoint.discretion import discreet, discreet_command


USER = "secretuser"
TOKENS = st.from_regex(r"hf_[A-Za-z0-9]{20,34}", fullmatch=True)
NAMES = st.from_regex(r"[a-z][a-z0-9_. -]{0,8}[a-z0-9]", fullmatch=True)
ROOTS = st.sampled_from([f"/home/{USER}", f"/mnt/data/{USER}", f"~{USER}", f"../{USER}", f"file:///Users/{USER}"])


@st.composite
def paths(draw):
    return "/".join([draw(ROOTS), *draw(st.lists(NAMES, min_size=1, max_size=3))])


@given(paths(), TOKENS)
def test_values(path, token):
    told = discreet({"dataset": path, "notes": [f"made with {token}", ("x", 3, None)], path: token})
    assert USER not in json.dumps(told)
    assert token not in json.dumps(told)
    assert told["dataset"] == path.rpartition("/")[2]
    assert told["notes"] == ["made with $HF_TOKEN", ["x", 3, None]]


@given(paths(), paths(), TOKENS)
def test_a_command(path, other, token):
    words = [
        "optimum-cli",
        "x",
        "--model",
        f"'{path}'",
        f"--dataset='{other}'",
        "--token",
        "anything",
        "--hub_token=it",
    ]
    told = discreet_command(" ".join([*words, "--private", "--name", token]))
    assert USER not in told
    assert token not in told
    assert "anything" not in told
    assert "token" not in told.lower().replace("$hf_token", "")
    assert told.endswith("--private --name $HF_TOKEN")
    assert discreet_command(told) == told


@pytest.mark.parametrize(
    "text",
    [
        "me/large",
        "https://huggingface.co/me/large/tree/main",
        "attention heads: 8 -> 5 (their share would leave 5.5)",
        "1/2 of all, 3 rows/s and/or more",
        "",
    ],
)
def test_what_is_no_secret_stays(text):
    assert discreet(text) == text


def test_a_command_without_secrets_stays():
    for command in ("optimum-cli mllm-prune --model me/large small --ratio 0.3", "it --name 'a b' --of me/x@v1"):
        assert discreet_command(command) == command


def test_paths_within_a_sentence():
    assert discreet("read from /home/a/b/rows.json, or `~/x/y` (./z).") == "read from rows.json, or `y` (z)."
    assert discreet("/home/somebody") == "home"
    assert discreet_command("it 'unclosed /home/a/b") == "it 'unclosed b"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(paths(), paths(), paths(), TOKENS)
def test_a_card(plan, path, dataset, base, token):
    command = f"optimum-cli mllm-prune --model '{path}' --dataset '{dataset}' --token {token}"
    changed = replace(
        plan,
        command=command,
        importance="taylor",
        model=plan.model | {"base_model": base, "base_model_revision": token},
        notes=[*plan.notes, f"read from {path.replace(' ', '')} with {token}"],
        config=plan.config | {"dataset": dataset},
    )
    for calibration in (None, CALIBRATION | {"dataset": dataset}):
        text = str(model_card("small", changed, report_of(changed, calibration), "mit", SIZES))
        assert USER not in text
        assert token not in text


@pytest.fixture(scope="module")
def plan():
    return MLLMPruner(tiny_llava.model()).plan(PruningConfig(ratio=0.3, importance="magnitude_l2"))
