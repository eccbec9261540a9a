"""Tells which system wrote a file, by what is in it. Reads as little as it can, and converts nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from clustersim.importers.containers import Arrays, read_arrays, read_gguf
from clustersim.importers.torch_file import read_pt
from clustersim.types import InputError

MOST_HEAD = 1 << 20                     # of a text that is looked at


@dataclass(frozen=True)
class Look:
    """A file or folder, opened as far as somebody asks."""

    path: Path

    @cached_property
    def files(self) -> list[Path]:
        """The file, or those of the folder and of its folders."""
        return [self.path] if self.path.is_file() else sorted([*self.path.glob("*"), *self.path.glob("*/*")])[:1000]

    @cached_property
    def first(self) -> Path:
        """The file that stands for the folder: its first one with a suffix that a recorder uses."""
        known = (".pt", ".jsonl", ".json", ".npy", ".npz", ".safetensors", ".parquet", ".csv", ".tsv", ".gguf")
        return next((file for file in self.files if file.is_file() and file.suffix.lower() in known), self.path)

    @cached_property
    def suffix(self) -> str:
        return self.first.suffix.lower()

    @cached_property
    def pt(self) -> Any:
        return read_pt(self.first) if self.suffix == ".pt" else None

    @cached_property
    def keys(self) -> frozenset[str]:
        """Keys of the dict, of the first JSON value, or names of the arrays or columns in the file."""
        found: Any = ()
        if self.suffix == ".pt":
            found = self.pt
        elif self.suffix in (".json", ".jsonl"):
            found = self.value
        elif self.suffix in (".npy", ".npz", ".safetensors"):
            found = self.arrays
        elif self.suffix in (".csv", ".tsv", ".parquet"):
            found = dict.fromkeys(self._columns())
        return frozenset(map(str, found)) if isinstance(found, dict) else frozenset()

    @cached_property
    def arrays(self) -> Arrays:
        return read_arrays(self.first)

    @cached_property
    def value(self) -> Any:
        """The first object of a JSON or JSONL."""
        with self.first.open(encoding="utf-8", errors="replace") as file:
            line = file.readline(64 * MOST_HEAD)
            try:
                found = json.loads(line)
            except (ValueError, RecursionError):
                try:
                    found = json.loads(line + file.read(64 * MOST_HEAD))
                except (ValueError, RecursionError):
                    return None
        return found[0] if isinstance(found, list) and found else found

    def _columns(self) -> list[str]:
        import polars as pl

        try:
            if self.suffix == ".parquet":
                return list(pl.read_parquet_schema(self.first))
            return pl.read_csv(self.first, glob=False, n_rows=1, separator="\t" if self.suffix == ".tsv" else ",").columns
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError):
            return []

    def array(self, ndim: int) -> bool:
        """Whether the file is one array of so many dimensions."""
        return self.suffix in (".npy", ".npz", ".safetensors") and len(self.arrays) == 1 and self._only.ndim == ndim

    @cached_property
    def _only(self) -> Any:
        return next(iter(self.arrays.values()))

    def whole(self) -> bool:
        """Whether that array holds whole numbers by type."""
        return bool(self._only.dtype.kind in "iu")

    def distinct(self) -> bool:
        """Whether it looks like choices of experts: no row names one twice."""
        rows = np.sort(self._only.reshape(-1, self._only.shape[-1])[:4096], axis=1)
        return bool(rows.shape[1] <= 64 and (np.diff(rows, axis=1) > 0).mean() > 0.5)


def _sglang_records(look: Look, key: str) -> bool:
    records = look.pt.get("records") if isinstance(look.pt, dict) else None
    return isinstance(records, list) and bool(records) and isinstance(records[0], dict) and key in records[0]


RULES: tuple[tuple[str, Callable[[Look], bool]], ...] = (       # the first that holds
    ("moetrace", lambda look: any(file.name == "tokens.parquet" for file in look.files) or _is_moetrace(look)),
    ("sglang_stat", lambda look: "logical_count" in look.keys and look.suffix == ".pt"),
    ("sglang_per_token", lambda look: look.suffix == ".pt" and _sglang_records(look, "topk_ids_of_layer")),
    ("sglang_per_pass", lambda look: look.suffix == ".pt" and _sglang_records(look, "global_physical_count")),
    ("tensorrt_llm", lambda look: any(file.name == "meta_info.json" for file in look.files)),
    ("megatron", lambda look: look.suffix == ".jsonl" and {"top_indices", "layer", "step"} <= look.keys),
    ("moe_balance", lambda look: look.suffix == ".jsonl" and {"topk_experts", "batch_id"} <= look.keys),
    ("vllm_moe_log", lambda look: look.suffix == ".jsonl" and ("topk_ids" in look.keys or look.keys >= {"type", "top_k"})),
    ("sglang_routed_experts", lambda look: "meta_info" in look.keys),
    ("vllm_routed_experts", lambda look: bool({"choices", "routed_experts"} & look.keys) and look.suffix in (".json", ".jsonl")),
    ("llama_imatrix", lambda look: look.suffix == ".gguf" and read_gguf(look.first)[0].get("general.type") == "imatrix"),
    ("flame_moe", lambda look: look.suffix == ".parquet" and {"scores", "indices"} <= look.keys),
    ("flame_moe", lambda look: isinstance(look.pt, tuple) and len(look.pt) == 2),
    ("table", lambda look: look.suffix in (".csv", ".tsv", ".parquet") and {"token", "layer", "expert"} <= look.keys),
    ("moe_balance", lambda look: look.suffix == ".npz" and {"routed_experts", "prompt_token_ids"} <= look.keys),
    ("vllm_routed_experts", lambda look: look.suffix == ".npz" and "routed_experts" in look.keys),
    ("vllm_eplb", lambda look: "expert_load_window" in look.keys),
    ("hf_router_logits", lambda look: any("logit" in key for key in look.keys)),
    ("deepseek_eplb", lambda look: look.keys == {"weight"} or (isinstance(look.pt, np.ndarray) and look.pt.ndim == 2)),
    ("deepseek_eplb", lambda look: look.array(2)),
    ("vllm_routed_experts", lambda look: look.array(3) and look.whole() and look.distinct()),
    ("moe_infinity", lambda look: look.suffix == ".npy" and look.array(3)),
)


def detect(path: Path) -> str | None:
    """The name of the importer for what stands at `path`; None where none knows it, or nothing can be read."""
    if not path.exists():
        return None
    look = Look(path)
    for name, holds in RULES:
        try:
            if holds(look):
                return name
        except (InputError, OSError, UnicodeError):
            continue
    return None


def _is_moetrace(look: Look) -> bool:
    if look.suffix != ".parquet":
        return False
    import polars as pl

    try:
        return "moetrace" in pl.read_parquet_metadata(look.first)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError):
        return False
