"""Load files: how many tokens each expert had, layer by layer, without the tokens. Fits them to a model; decides nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from clustersim.model import Model
from clustersim.types import Floats, InputError
from clustersim.workload.trace_counts import read_counts


def read_loads(path: str | Path, model: Model) -> list[Floats]:
    """The counts at `path` (`counts.parquet` of moetrace/1), [recorded layers] of float [domains, experts].

    Raises:
        InputError: what `read_counts` raises, or counts of another number of experts than the model's.
    """
    try:
        counts = read_counts(path)
    except InputError as error:
        raise InputError(f"decide.path={error}") from error
    choices = np.array(list(counts.choices.values()), np.float64)               # [domains, layers, experts]
    if choices.shape[2] != model.n_experts:
        theirs = f"{choices.shape[2]} experts ({counts.model})"
        raise InputError(f"decide.path={path}: the load of {theirs}; model {model.name} has {model.n_experts} experts")
    return [np.ascontiguousarray(choices[:, layer]) for layer in range(choices.shape[1])]
