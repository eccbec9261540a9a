"""What a sweep costs: `python -m tests.bench.sweeps [JOBS]` (1,000 jobs of the `bound` network on 64 GPUs, when left out).

Overhead is all that a job takes beyond its simulation and the writing of its tables, in seconds of one core, after start-up.
"""

from __future__ import annotations

import gc
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clustersim import simulation
from clustersim.composition import by_hydra
from clustersim.config import sweep
from clustersim.results import store
from clustersim.sweeps import pool
from clustersim.sweeps.job import run_job
from clustersim.sweeps.run import run_sweep

DEFAULT = ["network=bound"]
CASES = {
    "the default run, but network=bound": DEFAULT,
    "32 tokens per GPU": [*DEFAULT, "workload.tokens_per_gpu=32"],
    "sampled, DeepSeek-V2-Lite by counts": [
        *DEFAULT, "model=deepseek_v2_lite", "trace=sampled", "trace.counts=true", "exchange=direct",
    ],
}  # fmt: skip


def lists(jobs: int) -> list[str]:
    """So many jobs over four group choices and many single values."""
    return ["placement=contiguous,round_robin", "compute=roofline,none", f"seed=range(0,{-(-jobs // 4)})"]


def overhead(case: list[str], jobs: int) -> tuple[float, float, float]:
    """Seconds of this process for a job: overhead, simulation, writing."""
    spent = {"simulate": 0.0, "write": 0.0}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            began = time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                gc.collect()                    # what it leaves in cycles is its own; else it would go while others work
                spent[name] += time.process_time() - began

        return call

    real = simulation.simulate, simulation.write_run
    simulation.simulate, simulation.write_run = timed("simulate", real[0]), timed("write", real[1])
    folder = tempfile.mkdtemp()
    try:
        todo = list(sweep([*case, *lists(jobs + 4), f"output={folder}"]))
        first = todo[:: len(todo) // 4][:4]     # one of each set of group choices
        for job in first:
            run_job(job)                        # imports, compiles, composes that set
        gc.collect()
        gc.freeze()                             # so that collecting costs what the job has left, and not what is imported
        spent.update(simulate=0.0, write=0.0)
        began = time.process_time()
        for job in [job for job in todo if job not in first][:jobs]:
            assert run_job(job).state == "done"
        total = time.process_time() - began
    finally:
        simulation.simulate, simulation.write_run = real
        shutil.rmtree(folder)
    return (total - sum(spent.values())) / jobs, spent["simulate"] / jobs, spent["write"] / jobs


def whole_sweep(case: list[str], jobs: int) -> tuple[float, float, float]:
    """Seconds of a sweep on all cores: by the clock, of all processes together, and by the clock with all results there."""
    folder = tempfile.mkdtemp()
    seconds, spent = [], []
    try:
        for _ in range(2):
            began, before = time.perf_counter(), _cpu_s()
            swept = run_sweep([*case, *lists(jobs), f"output={folder}"])
            seconds.append(time.perf_counter() - began)
            spent.append(_cpu_s() - before)
            assert len(swept.outcomes) == -(-jobs // 4) * 4
            assert not swept.failed()
        assert store.scan(Path(folder)).collect().height == len(swept.outcomes)
    finally:
        shutil.rmtree(folder)
    return seconds[0], spent[0], seconds[1]


def _cpu_s() -> float:
    """Seconds of processors that this process and those that it has waited for have had."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


def main() -> None:
    jobs = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    began = time.process_time()
    for seed in range(5):
        by_hydra([*DEFAULT, f"seed={seed}"])
    print(f"Hydra's own composition: {(time.process_time() - began) / 5 * 1e3:.0f} ms")
    print(f"{'':<38} {'overhead':>9} {'simulate':>9} {'write':>7}   ms of a core per job")
    for name, case in CASES.items():
        print(f"{name:<38}", *(f"{1e3 * seconds:>8.1f} " for seconds in overhead(case, min(jobs, 40))), flush=True)
    if jobs < 4:
        return
    print(f"{jobs} jobs on {pool.cores()} cores: seconds by the clock, of processors, and by the clock with all of them there")
    for name, case in CASES.items():
        first, processors, again = whole_sweep(case, jobs)
        print(f"{name:<38} {first:>8.1f} {processors:>8.1f} {again:>8.1f}", flush=True)


if __name__ == "__main__":
    main()
