"""The command in this process: its exit code and what it says."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from types import SimpleNamespace

import pytest
from checkpoint import tiny_llava

from optimum_mllm_prune import pruner
from optimum_mllm_prune.checkpoint import Verification
from optimum_mllm_prune.commands.prune import MLLMPruneCommand


PROGRAM = "optimum-cli mllm-prune"


@pytest.fixture(scope="session")
def llava(tmp_path_factory):
    return tiny_llava.save_model(tmp_path_factory.mktemp("models") / "tiny-llava")


@pytest.fixture(scope="session")
def rows(tmp_path_factory):
    return tiny_llava.save_rows(tmp_path_factory.mktemp("data") / "digit-rows")


@pytest.fixture
def cwd(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def command(capsys, monkeypatch, cwd):
    """Run the command on words; gives exit code, stdout, stderr and the lines of stderr that are not progress bars."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["optimum-cli", "mllm-prune", *map(str, words)])
        return called(MLLMPruneCommand, PROGRAM, words, capsys)

    return run


@pytest.fixture
def refused(command, cwd):
    """Run the command on wrong input; gives the one line, after checking that nothing else happened."""

    def run(*words, code=2):
        before = tiny_llava.tree(cwd)
        done = command(*words)
        assert tiny_llava.tree(cwd) == before
        assert done.code == code, done.err
        assert len(done.lines) == 1, done.err
        assert done.lines[0].startswith(f"{PROGRAM}: error: ")
        return done.lines[0].removeprefix(f"{PROGRAM}: error: ")

    return run


@pytest.fixture
def unverified(monkeypatch):
    """Spare the fresh process where the test is about something else; test_end_to_end has it."""

    def agree(*_, **__):
        return Verification(0.0, [], [], True, 1e-7, True, "image + text", "LlavaForConditionalGeneration")

    monkeypatch.setattr(pruner, "verify", agree)


def called(command, program, words, capsys):
    """A command in this process: exit code, stdout, stderr and the lines of stderr that are not progress bars."""
    words = [str(word) for word in words]
    parser = ArgumentParser(program)
    capsys.readouterr()
    code = 0
    try:
        command.parse_args(parser)
        command(None, args=parser.parse_args(words), from_defaults_factory=True, parser=parser).run()
    except SystemExit as end:
        code = end.code
    out, err = capsys.readouterr()
    return SimpleNamespace(code=code, out=out, err=err, lines=told(err))


def told(err):
    """Lines of stderr without progress bars."""
    return [
        line
        for line in err.replace("\r", "\n").split("\n")
        if line.strip() and "it/s" not in line and "%|" not in line
    ]
