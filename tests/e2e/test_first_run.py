"""The first run, before anything is compiled, and a run that can never keep what it compiles."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import polars as pl
import pytest

import clustersim as cs
from clustersim.places import PACKAGE

SMALL = ["topology.nodes=2", "workload.tokens_per_gpu=8", "network=packet"]      # the solver that is compiled soonest


def test_array_bounds_are_checked_in_tests():
    past = numba.njit(lambda values, i: values[i])
    with pytest.raises(IndexError):
        past(np.zeros(3), 3)


@pytest.fixture
def nowhere(tmp_path):
    """A copy of the package in which no machine code can be kept: a file stands where each cache folder would be."""
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "clustersim", ignore=skip)
    for folder in ("topologies", "experiments"):
        shutil.copytree(PACKAGE.parent / folder, tmp_path / folder)
    for folder in [path for path in (tmp_path / "clustersim").rglob("*") if path.is_dir()] + [tmp_path / "clustersim"]:
        (folder / "__pycache__").touch()
    (tmp_path / "home").touch()
    kept = {key: value for key, value in os.environ.items() if not key.startswith("NUMBA_")}
    return tmp_path, kept | {"HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "home")}


def test_a_run_without_a_cache_folder_compiles_says_so_once_and_is_right(nowhere):
    """It is also the first run of all: nothing is compiled when it begins."""
    folder, environment = nowhere
    told = subprocess.run(
        [sys.executable, "-m", "clustersim.cli", *SMALL, f"output={folder / 'results'}"],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    assert told.stderr.count("NUMBA_CACHE_DIR") == 1
    assert told.stderr.count("compiling the network solver") == 1
    expected = cs.simulate(SMALL)
    [written] = Path(folder / "results").rglob("summary.parquet")
    assert pl.read_parquet(written)["step_s"].item() == expected.summary["step_s"]
    assert not list(folder.rglob("*.nbi")), "nothing was kept"
