"""TensorRT-LLM: expert statistics, as EXPERT_STATISTIC_PATH writes them. Read after tensorrt_llm ExpertStatistic."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from clustersim.importers.building import Imported, counts_from, files_in, together
from clustersim.importers.containers import read_json, read_safetensors
from clustersim.types import InputError


def tensorrt_llm(path: Path, *, model: str | None = None) -> Imported:
    """A folder with meta_info.json and a rank*.safetensors per rank: int64 [experts] under the key "<iteration>_<layer>".

    Raises:
        InputError: one of these is missing, or says something else.
    """
    folder = path if path.is_dir() else path.parent
    about = read_json(folder / "meta_info.json")
    experts = about.get("num_experts") if isinstance(about, dict) else None
    if not isinstance(experts, int) or isinstance(experts, bool) or experts < 1:
        raise InputError(f"{folder / 'meta_info.json'}: num_experts is {experts!r}; it must be a whole number from 1")
    parts = []
    for file in files_in(folder, "rank*.safetensors"):
        if file.stem.endswith("_raw"):
            continue
        if (named := re.fullmatch(r"rank(\d+)", file.stem)) is None:
            raise InputError(f"{file}: its name says no rank; rank0.safetensors and so on are expected")
        found = {}
        for key, counts in read_safetensors(file).items():
            place = re.fullmatch(r"(\d+)_(\d+)", key)
            if place is None or counts.shape != (experts,) or counts.dtype.kind not in "iu":
                raise InputError(f"{file}: {key!r} is no '<iteration>_<layer>' with whole numbers for {experts} experts")
            found[int(place[1]), int(place[2])] = counts
        if not found:
            raise InputError(f"{file}: holds no statistics")
        steps, layers = (sorted({key[i] for key in found}) for i in (0, 1))
        if len(found) != len(steps) * len(layers):
            needed = len(steps) * len(layers)
            raise InputError(f"{file}: {len(steps)} iterations of {len(layers)} layers need {needed} keys, not {len(found)}")
        table = np.stack([np.stack([found[step, layer] for layer in layers]) for step in steps])
        meta = {"model": model or "model not named", "source": "TensorRT-LLM expert statistic"}
        if isinstance(about.get("num_experts_per_token"), int):
            meta["top_k"] = about["num_experts_per_token"]
        parts.append(counts_from(file, table, layers=layers, step=np.array(steps), rank=int(named[1]), meta=meta))
    return together(path, parts)
