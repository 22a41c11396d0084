"""What the documentation prints on evaluation and on the guide, run as it is printed."""

import json
import os
import subprocess
import sys

from checkpoint import tiny_llava
from docs.printed import block


OFFLINE = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def test_evaluation(tmp_path):
    for name in ("original", "pruned"):
        tiny_llava.save_model(tmp_path / name)
    tiny_llava.save_rows(tmp_path / "my_rows")
    script = block("docs/evaluation.md", "python", "report.quality")
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=OFFLINE, check=True, capture_output=True, text=True
    )
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        "exact_match",
        "answer_perplexity",
        "token_agreement",
    ]
    found = {score["metric"]: score for score in json.loads((tmp_path / "evaluation.json").read_text())["quality"]}
    assert found["token_agreement"]["value"]["value"] == 100
    assert found["answer_perplexity"]["value"] == found["answer_perplexity"]["baseline"]
