"""The study in miniature: one cell, broken off and gone on with."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
RUNS = {"original-0-none-100-0.001-s0", "layer-30-none-100-0.001-s0", "layer-30-sft-100-0.001-s0"}
ONCE = {"guessing", "stability", "speed", "settings"}


def command(results, output, *flags):
    script = ROOT / "benchmarks" / "recovery_study.py"
    return [sys.executable, str(script), str(results), "--output", str(output), *flags]


def run(results, output, *flags):
    return subprocess.run(command(results, output, *flags), cwd=output.parent, env=environment(), **CAPTURED)


def environment():
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


CAPTURED = {"capture_output": True, "text": True, "timeout": 300}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Results and output of a study that was killed after its first run and then finished."""
    results, output = (tmp_path_factory.mktemp("study") / name for name in ("results", "docs"))
    first = results / "original-0-none-100-0.001-s0.json"
    killed = subprocess.Popen(
        command(results, output, "--quick"), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for _ in range(1200):
        if first.exists() or killed.poll() is not None:
            break
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert first.exists()
    there = {path: path.stat().st_mtime_ns for path in results.glob("*.json")}
    done = run(results, output, "--quick")
    assert done.returncode == 0, done.stderr
    return results, output, there


def test_a_run_that_is_finished_is_not_repeated(folders):
    results, _, there = folders
    assert {path: path.stat().st_mtime_ns for path in there} == there
    assert {path.stem for path in results.glob("*.json")} == RUNS | ONCE
    assert not list(results.glob("*.part"))


def test_tables_and_plots_are_written_where_asked(folders):
    _, output, _ = folders
    text = (output / "study.md").read_text()
    assert "| layers | sft | projector, adapters in the backbone |" in text
    assert "| S4 |" in text and "**not measured**" in text
    assert {path.name for path in (output / "study").iterdir()} == {"ratio.png", "data.png"}


def test_report_only_keeps_what_is_written_by_hand_and_runs_nothing(folders):
    results, output, _ = folders
    (results / "layer-30-sft-100-0.001-s0.json").rename(results.parent / "aside.json")
    file = output / "study.md"
    file.write_text(file.read_text() + "\nBy hand.\n")
    done = run(results, output, "--quick", "--report-only")
    (results.parent / "aside.json").rename(results / "layer-30-sft-100-0.001-s0.json")
    assert done.returncode == 0, done.stderr
    assert file.read_text().endswith("\nBy hand.\n")
    assert "| layers | sft | projector, adapters in the backbone |  |" in file.read_text()


def test_results_of_other_settings_are_refused(folders):
    results, output, _ = folders
    done = run(results, output, "--report-only")
    assert done.returncode == 1
    assert "other settings" in done.stderr
