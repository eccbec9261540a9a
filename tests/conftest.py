"""Compiled code runs with its array bounds checked in every test: without that numba reads past an array and says nothing.

Random examples are the same in every run; `HYPOTHESIS_PROFILE=new` draws new ones, ten times as many.
"""

import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("new", max_examples=1000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

if "NUMBA_BOUNDSCHECK" not in os.environ:       # read when numba is imported; numba's cache on disk does not look at it
    os.environ["NUMBA_BOUNDSCHECK"] = "1"
    os.environ["NUMBA_CACHE_DIR"] = str(Path(__file__).parents[1] / "build" / "numba_with_bounds")


@pytest.fixture(scope="session")
def thousand(tmp_path_factory):
    """The folder of a sweep of a thousand jobs, written once: tests read it and write nothing there."""
    from tests.reports import made_sweep, real_run, thousand_jobs

    folder = tmp_path_factory.mktemp("thousand")
    return made_sweep(folder / "grid", real_run(folder / "like"), thousand_jobs())
