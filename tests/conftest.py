"""Compiled code runs with its array bounds checked in every test: without that numba reads past an array and says nothing."""

import os
from pathlib import Path

if "NUMBA_BOUNDSCHECK" not in os.environ:       # read when numba is imported; numba's cache on disk does not look at it
    os.environ["NUMBA_BOUNDSCHECK"] = "1"
    os.environ["NUMBA_CACHE_DIR"] = str(Path(__file__).parents[1] / "build" / "numba_with_bounds")
