"""Many jobs over processes of this machine. Knows nothing of Hydra and draws no bar: it calls back.

Every worker is a fresh interpreter that is handed one job at a time, so a job that dies takes nothing else with it. Workers
ignore Ctrl-C and end with the process that started them, at the latest when they have written the job in hand.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from clustersim.sweeps.job import Outcome, died, run_job

Job = Sequence[str]                                     # its overrides
Ended = Callable[[int, Outcome], bool]                  # told the number of a job and its outcome; False: give out no more
Told = Callable[[int, float, str], None]                # told the number of a job, the fraction done of it, and what it does

ALONE_S = 20.0          # the first worker runs alone until its first job ends, or for so long: it may have to compile
WORTH_S = 2.0           # more workers are started if the rest would take longer than this
TELL_S = 0.5            # between two words about the progress of one job
THREADS = ("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_here(jobs: Sequence[Job], ended: Ended, told: Told) -> None:
    """The jobs one after the other, in this process."""
    for number, job in enumerate(jobs):
        if not ended(number, run_job(job, partial(told, number))):
            return


def run_pool(jobs: Sequence[Job], workers: int, ended: Ended, told: Told) -> None:
    """The jobs on up to `workers` processes, in order of beginning; every job ends exactly once unless `ended` says stop."""
    pending = deque(range(len(jobs)))
    began, n_ended, giving = time.monotonic(), 0, True
    pool: list[_Worker] = []

    def start() -> None:
        pool.append(_Worker.started(workers > 1))
        pool[-1].give(pending.popleft(), jobs)

    try:
        start()
        while pool:
            spent = time.monotonic() - began
            worth = spent / n_ended * len(pending) > WORTH_S if n_ended else spent > ALONE_S
            while giving and worth and pending and len(pool) < workers:
                start()
            for ready in wait([worker.pipe for worker in pool], timeout=1.0):
                worker = next(worker for worker in pool if worker.pipe is ready)
                message = worker.heard(jobs)
                if isinstance(message, tuple):
                    told(worker.job, *message)
                    continue
                n_ended += 1
                giving = ended(worker.job, message) and giving
                if giving and pending and worker.alive:
                    worker.give(pending.popleft(), jobs)
                    continue
                pool.remove(worker)
                worker.end()
                if giving and pending and not pool:
                    start()
    finally:
        for worker in pool:
            worker.process.terminate()
        for worker in pool:
            worker.end()


@dataclass(eq=False)
class _Worker:
    """A process, the pipe to it, and the number of the job that it has in hand."""

    process: SpawnProcess
    pipe: Connection
    job: int = -1
    alive: bool = True

    @classmethod
    def started(cls, alone_on_its_core: bool) -> _Worker:
        ours, theirs = get_context("spawn").Pipe()
        process = get_context("spawn").Process(target=_work, args=(theirs,), daemon=True)
        resource_tracker.ensure_running()       # starting it lets the signal through again
        with _environment(dict.fromkeys(THREADS, "1") if alone_on_its_core else {}), _held_back(signal.SIGINT):
            process.start()
        theirs.close()                  # so that its end is noticed here
        return cls(process, ours)

    def give(self, number: int, jobs: Sequence[Job]) -> None:
        self.job = number
        with contextlib.suppress(OSError):              # it has died; that will be heard
            self.pipe.send(list(jobs[number]))

    def heard(self, jobs: Sequence[Job]) -> tuple[float, str] | Outcome:
        """What it says: its progress, or the outcome of its job, which it may have died of."""
        try:
            message: tuple[float, str] | Outcome = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(5)
            self.alive = False
            return died(jobs[self.job], _how(self.process.exitcode))
        return message

    def end(self) -> None:
        self.pipe.close()
        self.process.join(5)


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"its process was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"its process ended with exit code {code}"


def _work(pipe: Connection) -> None:
    """What a worker does: job after job, until nobody gives it one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)        # Ctrl-C is for the one who gives out jobs
    gc.set_threshold(100_000, 50, 100)                  # as the command line does
    first = True
    lock = threading.Lock()                             # the word about compiling comes from a thread of its own
    while True:
        try:
            overrides: list[str] = pipe.recv()
        except (EOFError, OSError):
            return
        last = time.monotonic()

        def tell(fraction: float, what: str) -> None:
            nonlocal last
            if "compiling" in what or time.monotonic() - last > TELL_S:
                last = time.monotonic()
                _send(pipe, lock, (fraction, what))

        _send(pipe, lock, run_job(overrides, tell))
        gc.collect()                                    # the event loop leaves cycles that hold the arrays of a run
        if first:
            gc.freeze()                                 # what is imported by now stays, and need not be looked at again
            first = False


def _send(pipe: Connection, lock: threading.Lock, message: Any) -> None:
    with lock, contextlib.suppress(OSError):            # nobody is there any more; the next look for a job ends the worker
        pipe.send(message)


@contextlib.contextmanager
def _held_back(number: signal.Signals) -> Iterator[None]:
    """A signal waits until this is over; what is started meanwhile never gets it (a worker before it can say so itself)."""
    if not hasattr(signal, "pthread_sigmask"):          # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Variables for a process that is started in here; those that are set already stay."""
    new = {key: value for key, value in values.items() if key not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for key in new:
            del os.environ[key]
