"""What reports cost, in CPU seconds and bytes: `python -m tests.bench.reports`. Results are made first, and not counted."""

import tempfile
import time
from pathlib import Path

from clustersim import simulate
from clustersim.report.make import write_report
from tests.reports import made_sweep, real_run, thousand_jobs

# 256 GPUs, 61 layers of which 58 exchange: as many cells as a page of one run has to show
LARGE = [
    "model=deepseek_v3", "topology=h800_sxm", "topology.nodes=32", "trace=sampled", "network=bound", "workload.tokens_per_gpu=64",
]  # fmt: skip


def cost(folder, file, formats=()):
    """CPU seconds of the best of three, and bytes of the page."""
    seconds = []
    for _ in range(3):
        began = time.process_time()
        _, (page, *_) = write_report(folder, file, formats)
        seconds.append(time.process_time() - began)
    return min(seconds), page.stat().st_size


def main():
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        small = real_run(home / "small")
        large = simulate([*LARGE, f"output={home / 'large'}"]).save()
        sweep = made_sweep(home / "sweep", small, thousand_jobs())
        both = ("svg", "pdf")
        cases = (("1,000 jobs", sweep, ()), ("256 GPUs, 58 MoE layers", large, ()), ("the same, SVG and PDF", large, both))
        for name, folder, formats in cases:
            seconds, size = cost(folder, home / "report.html", formats)
            print(f"{name:28} {seconds:6.2f} s  {size / 1e3:6.0f} kB")


if __name__ == "__main__":
    main()
