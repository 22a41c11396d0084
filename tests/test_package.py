"""The package itself: light to import, one version, small files, nothing installed that it must do without."""

import subprocess
import sys
from importlib.metadata import requires, version
from pathlib import Path

import pytest

import optimum_mllm_prune


HOME = Path(optimum_mllm_prune.__file__).parent
FILES = sorted(HOME.rglob("*.py"))


def test_importing_it_imports_no_torch():
    script = (
        "import sys, optimum_mllm_prune\n"
        "dir(optimum_mllm_prune), optimum_mllm_prune.__version__\n"
        "print([name for name in ('torch', 'transformers', 'datasets', 'optimum') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_there_is_one_version():
    assert optimum_mllm_prune.__version__ == version("optimum-mllm-prune")


@pytest.mark.parametrize("name", optimum_mllm_prune.__all__)
def test_public_names_exist(name):
    assert getattr(optimum_mllm_prune, name) is not None
    assert name in dir(optimum_mllm_prune)


def test_the_names_of_the_design_are_public():
    assert {"MLLMPruner", "PruningConfig", "PruningPlan", "UserInputError"} <= set(optimum_mllm_prune.__all__)


def test_other_names_do_not_exist():
    with pytest.raises(AttributeError, match="module 'optimum_mllm_prune' has no attribute 'Pruner'"):
        _ = optimum_mllm_prune.Pruner


def test_there_are_files():
    assert HOME / "pruner.py" in FILES


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(HOME)))
def test_files_are_short(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 300


def test_torchvision_is_not_asked_for():
    needed = [requirement.lower() for requirement in requires("optimum-mllm-prune")]
    assert any(requirement.startswith("torch>") for requirement in needed)
    assert not any("torchvision" in requirement for requirement in needed)


def test_the_template_of_the_card_is_installed():
    assert (HOME / "checkpoint" / "card.md.jinja").is_file()
