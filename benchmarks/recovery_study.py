"""The paper's grid on the embedded model: layers or width, four ratios, every recovery, little and much data.

    python benchmarks/recovery_study.py RESULTS --jobs 2

One JSON file for every finished run goes to RESULTS; the same command goes on where it was broken off. Tables, plots
and the verdicts on the paper's statements go to `study.md` and `study/` in --output. The statements are those of Huang
et al., arXiv 2507.20749 and 2604.24380.
"""

import argparse
import json
import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from study_once import guessing, speed, stability
from study_runs import QUICK, Run, Settings, grid, measure
from study_tables import write_report
from tqdm.auto import tqdm


def write(path: Path, content: Any) -> None:
    """Write JSON: the file is there whole or not at all."""
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def work(settings: Settings, run: Run, results: Path) -> str:
    """Do one run and keep what it gave."""
    write(results / f"{run.name}.json", measure(settings, run))
    return run.name


def start_worker() -> None:
    """One thread; ends with the process that started it."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def do(settings: Settings, results: Path, jobs: int) -> None:
    """All runs that have no file yet."""
    for name, once in (("guessing", guessing), ("stability", stability), ("speed", speed)):
        if not (results / f"{name}.json").exists():
            write(results / f"{name}.json", once(settings))
    missing = [run for run in grid(settings) if not (results / f"{run.name}.json").exists()]
    if jobs == 1:
        finished: Iterator[str] = (work(settings, run, results) for run in missing)
        _show(finished, len(missing))
    else:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, mp_context=spawn, initializer=start_worker) as pool:
            futures = [pool.submit(work, settings, run, results) for run in missing]
            _show((future.result() for future in as_completed(futures)), len(missing))


def _show(finished: Iterator[str], total: int) -> None:
    for name in (bar := tqdm(finished, total=total, desc="Runs", unit="run")):
        bar.set_postfix_str(name)


def opened(results: Path, settings: Settings) -> None:
    """Make the folder, or see that it holds results of the same settings."""
    results.mkdir(parents=True, exist_ok=True)
    file, wanted = results / "settings.json", json.loads(json.dumps(asdict(settings)))
    if not file.exists():
        write(file, wanted)
    elif json.loads(file.read_text()) != wanted:
        raise SystemExit(f"{results} holds results of other settings: give another folder.")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder of the runs' results; what is there is not run again")
    parser.add_argument("--output", type=Path, default=Path("docs"), help="where study.md and study/ go (docs)")
    parser.add_argument("--jobs", type=int, default=1, help="processes, one thread each (default 1)")
    parser.add_argument("--quick", action="store_true", help="a miniature of the grid, in less than a minute")
    parser.add_argument("--report-only", action="store_true", help="run nothing, write tables of what is there")
    args = parser.parse_args()
    settings = QUICK if args.quick else Settings()
    torch.set_num_threads(1)
    opened(args.results, settings)
    if not args.report_only:
        do(settings, args.results, args.jobs)
    print(write_report(args.results, args.output))


if __name__ == "__main__":
    main()
