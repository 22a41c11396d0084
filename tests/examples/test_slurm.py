"""The SLURM script, with stand-ins for SLURM's own commands: one node, two processes on its CPU."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from checkpoint import tiny_llava


SCRIPT = Path(__file__).parents[2] / "examples" / "slurm" / "prune.sbatch"
STAND_INS = {"scontrol": "echo localhost\nsleep 0.2\necho other\n", "srun": 'SLURM_NODEID=0 exec "$@"\n'}


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def test_one_node(tmp_path):
    for name, text in STAND_INS.items():
        (tmp_path / "bin" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}")
        (tmp_path / "bin" / name).chmod(0o755)
    model, rows = tiny_llava.save_model(tmp_path / "model"), tiny_llava.save_rows(tmp_path / "rows")
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_NNODES": "1",
        "SLURM_GPUS_ON_NODE": "2",
        "PORT": str(free_port()),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    words = ["--model", model, "my plan", "--dataset", rows, "--method", "layer", "--num-samples", "4", "--dry-run"]
    call = ["bash", SCRIPT, *words]
    done = subprocess.run(list(map(str, call)), cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    plan = json.loads((tmp_path / "my plan" / "pruning_plan.json").read_text())
    assert plan["config"]["method"] == "layer"
    assert done.stdout.count("Plan and scores are in my plan") == 1
