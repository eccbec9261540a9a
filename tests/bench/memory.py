"""How much memory one uniform exchange needs beyond what is imported: run as a program of its own, prints one JSON line."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import clustersim as cs
from clustersim.network import kernel
from tests.matrices import uniform


def peak_mib() -> float:
    """The most memory that this process has had. (`ru_maxrss` starts at what the parent had when it forked.)"""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main() -> None:
    assert kernel.run is not None, "the solver is imported, so that numba counts as imports"
    n_gpus, imported = int(sys.argv[1]), peak_mib()
    cluster, nbytes = cs.load_cluster("ideal_rail", nodes=n_gpus // 8), uniform(n_gpus)
    cs.transfer(cs.load_cluster("ideal_rail", nodes=1), uniform(8))         # loads the compiled code
    seconds = []
    for _ in range(7):
        began = time.process_time()
        result = cs.transfer(cluster, nbytes)
        seconds.append(time.process_time() - began)
    print(json.dumps({"seconds": min(seconds), "mib": peak_mib() - imported, "imports_mib": imported, "solves": result.solves}))


if __name__ == "__main__":
    main()
