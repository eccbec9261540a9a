"""Two runs side by side: in what they were told apart, and what came of it. Built, not printed; as tables or plain values."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from clustersim.results.store import read_status
from clustersim.types import InputError
from clustersim.units import format_bytes, format_seconds


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _teraflops(value: float) -> str:
    return f"{value / 1e12:,.1f} T"


def _ratio(value: float) -> str:
    return f"{value:.3f}"


def gpu_seconds(row: Mapping[str, Any]) -> float:
    """GPU-seconds per token, by which runs are ranked: those of the same work on as many GPUs as their steps are.

    Infinite where no time passed, or none is known.
    """
    step, rate = row.get("step_s"), row.get("tokens_per_s")
    timed = step and rate and math.isfinite(step) and math.isfinite(rate)
    return float(row["gpus"]) / float(rate) if rate and timed else math.inf


def same_work(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether all runs took as many tokens through the same model on as many GPUs, so that steps can be compared as they are."""
    return len({(row.get("tokens"), row.get("model"), row.get("gpus")) for row in rows}) <= 1


def limit_of(row: Mapping[str, Any]) -> str:
    """The class of links that limits exchanges, with its share where there are others; of runs of before this was told, the link
    that is busy longest."""
    kind, share = row.get("bottleneck_class"), row.get("bottleneck_class_share")
    if kind is None or share is None:
        return str(row.get("bottleneck") or "none")
    return str(kind) if share > 0.995 else f"{kind} {100 * share:.0f} %"


SHOWN: dict[str, tuple[str, Callable[[Any], str]]] = {      # column of the summary, or sum over layers -> name, how it is written
    "step_s": ("step", format_seconds),
    "compute_s": ("compute of a GPU", format_seconds),
    "attention_s": ("  attention", format_seconds),
    "expert_s": ("  experts", format_seconds),
    "other_s": ("  the rest", format_seconds),
    "exposed_comm_s": ("exposed communication", format_seconds),
    "wait_s": ("waiting for others", format_seconds),
    "layers.dispatch_s": ("dispatch, all layers", format_seconds),
    "layers.combine_s": ("combine, all layers", format_seconds),
    "bubble_s": ("pipeline bubble", format_seconds),
    "tensor_comm_s": ("tensor, context groups", format_seconds),
    "exchange_comm_s": ("exchanges, exposed", format_seconds),
    "gradient_comm_s": ("gradients and weights", format_seconds),
    "optimiser_s": ("optimiser", format_seconds),
    "tokens_per_s": ("tokens/s", _count),
    "tokens_per_s_per_gpu": ("tokens/s per GPU", _count),
    "model_flops_per_s_per_gpu": ("model FLOP/s per GPU", _teraflops),
    "dollars_per_million_tokens": ("dollars, 1e6 tokens", _ratio),
    "gpu_hours_per_trillion_tokens": ("GPU-hours, 1e12 tokens", _count),
    "memory_bytes": ("memory, fullest GPU", format_bytes),
    "drop_rate": ("dropped choices", _percent),
    "gate_mass_lost": ("gate weight lost", _percent),
    "seconds_saved_by_dropping": ("saved by dropping", format_seconds),
    "padding_share": ("padding of all rows", _percent),
    "experts_per_token": ("experts of a token", _ratio),
    "imbalance": ("load, busiest GPU / mean", _ratio),
    "over_bound": ("T/bound", _ratio),
    "nvlink_bytes": ("over NVLink", format_bytes),
    "nic_bytes": ("over NICs", format_bytes),
    "popularity_s": ("cause: popularity", format_seconds),
    "source_s": ("cause: source", format_seconds),
    "placement_s": ("cause: placement", format_seconds),
    "exchange_s": ("cause: exchange", format_seconds),
    "topology_s": ("cause: topology", format_seconds),
    "joint_s": ("causes together", format_seconds),
}


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Compared:
    """Two finished runs."""

    folders: tuple[Path, Path]
    config: dict[str, tuple[Any, Any]]          # dotted key -> values that differ; a key that a run does not have is missing
    results: dict[str, tuple[Any, Any]]         # name of SHOWN, and `bottleneck` -> values

    def plain(self) -> dict[str, Any]:
        """As JSON has it: `ratio` is the second over the first, null where there is none."""
        results = {
            name: {"a": a, "b": b, "ratio": b / a if isinstance(a, float | int) and isinstance(b, float | int) and a else None}
            for name, (a, b) in self.results.items()
        }
        told = {key: {"a": _told(a), "b": _told(b)} for key, (a, b) in self.config.items()}
        return {"a": str(self.folders[0]), "b": str(self.folders[1]), "config": told, "results": results}


class _Missing:
    """What stands where a run does not have a key."""


MISSING = _Missing()


def compare(a: str | Path, b: str | Path) -> Compared:
    """Read two runs.

    Raises:
        InputError: one of them is not the folder of a finished run.
    """
    one, other = Path(a), Path(b)
    sides = [_read(folder) for folder in (one, other)]
    configs = [dict(leaves(told["config"])) for told, _ in sides]
    keys = dict.fromkeys([*configs[0], *configs[1]])
    pairs = {key: (configs[0].get(key, MISSING), configs[1].get(key, MISSING)) for key in keys}
    numbers = [numbers for _, numbers in sides]
    names = ["bottleneck", *SHOWN]
    return Compared(
        folders=(one, other),
        config={key: pair for key, pair in pairs.items() if pair[0] != pair[1]},
        results={name: (numbers[0].get(name), numbers[1].get(name)) for name in names},
    )


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """run.json, and the numbers of a run."""
    status = read_status(folder / "status.json")
    if status.get("state") != "done":
        why = f"failed: {status['reason']}" if "reason" in status else "is not the folder of a finished run"
        raise InputError(f"compare {folder}: {why}")
    try:
        told = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        row = pl.read_parquet(folder / "summary.parquet", glob=False).row(0, named=True)
        if (folder / "stages.parquet").is_file():           # a training step: it has no table of layers
            return told, row
        layers = pl.read_parquet(folder / "layers.parquet", columns=["dispatch_s", "combine_s"], glob=False)
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        raise InputError(f"compare {folder}: cannot be read ({str(error).splitlines()[0]})") from error
    return told, {**row, **{f"layers.{name}": float(layers[name].sum()) for name in layers.columns}}


def leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a config under its dotted name, `sources` left out."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            if key != "sources":
                yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def comparison_table(compared: Compared) -> RenderableType:
    """For a person, in 80 columns. Where another option of a group is taken its keys go without saying."""
    other = {key.removesuffix(".name") for key in compared.config if key.count(".") == 1 and key.endswith(".name")}
    said = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for heading in ("config", "A", "B"):
        said.add_column(heading, overflow="fold")
    for key, (a, b) in compared.config.items():
        group, _, leaf = key.partition(".")
        if group not in other or leaf == "name":
            said.add_row(group if leaf == "name" else key, _word(a), _word(b))
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("result", no_wrap=True)
    for heading in ("A", "B", "B / A"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, (text, shown) in SHOWN.items():
        a, b = compared.results[name]
        if (a or b) and None not in (a, b):
            ratio = f"{b / a:.3f}" if a else "-"
            style = "bold" if name == "step_s" else "dim" if ratio == "1.000" else None
            table.add_row(text, shown(a), shown(b), ratio, style=style)
    busiest = [str(name or "none") for name in compared.results["bottleneck"]]
    trained = all(name.startswith("pipeline device") for name in busiest)
    table.add_row("busiest device" if trained else "busiest link", *busiest, "")
    names = Text(f"A {compared.folders[0]}\nB {compared.folders[1]}\n")
    return Group(names, said if compared.config else Text("the same config"), Text(), table)


def _word(value: Any) -> str:
    return "-" if value is MISSING else json.dumps(value) if not isinstance(value, str) else value


def _told(value: Any) -> Any:
    return None if value is MISSING else value
