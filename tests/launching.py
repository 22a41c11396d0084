"""How two processes are started on a CPU, as a user would."""

import os
import subprocess
import sys


LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port=0"]
# With --cpu, accelerate starts one process alone.
TWO = ["--multi_gpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]


def launched(words, cwd=None):
    """A call that must end well, one thread a process: the machine may have no more cores than processes."""
    own = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([*map(str, words)], cwd=cwd, env=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done
