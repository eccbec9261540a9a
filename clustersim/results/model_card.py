"""What a model is, for a person: weights, FLOPs and bytes, and the parts it is made of. Built and not printed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from clustersim.architecture import PHASES, Architecture, describe
from clustersim.places import group_folder, yaml_fault
from clustersim.types import InputError
from clustersim.units import format_bytes, format_seconds


def model_page(path: str) -> RenderableType | None:
    """The page of a model, by name or as a YAML file; None where `path` is neither.

    Raises:
        InputError: a file that describes no sound model.
    """
    config = model_file(path)
    return None if config is None else _card(describe(config))


def model_file(path: str) -> dict[str, object] | None:
    """The config of a model of ours by name, or of a YAML file that describes one; None for anything else."""
    import yaml

    file = Path(path) if path.endswith((".yaml", ".yml")) else group_folder("model") / f"{path}.yaml"
    if not file.is_file():
        return None
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a YAML file: {yaml_fault(error)}") from error
    return config if isinstance(config, dict) and "hidden" in config else None


def _card(model: Architecture) -> RenderableType:
    """Weights, FLOPs and bytes of a model, and the parts that it is made of."""
    marked = f" ({model.status}: not published)" if model.status else ""
    facts = {
        "model": f"{model.name}{marked}: {len(model.core.layers)} layers of width {model.core.hidden:,}",
        "parameters": f"{_billions(model.total_params)}, active per token {_billions(model.active_params)} "
        f"({100 * model.active_params / model.total_params:.3g} %); an embedding table has {_billions(model.embedding_params)}",
        "weights": f"{format_bytes(model.weight_bytes)} as published; "
        + ", ".join(f"{name.upper()} {format_bytes(model.weight_bytes_as(name))}" for name in ("bf16", "fp8", "int4")),
        "FLOPs per token": "; ".join(
            f"{phase} {_giga(model.flops(phase, 4096))}, {_giga(model.flops(phase, 131072))}" for phase in PHASES
        ) + " (looking at 4,096 and 131,072 tokens)",
        "cache per sequence": f"{format_bytes(model.cache_bytes(4096))} at 4,096 tokens, "
        f"{format_bytes(model.cache_bytes(131072))} at 131,072 (BF16)",
        "bytes per token": "decode at 4,096 tokens: "
        + ", ".join(f"{format_bytes(model.decode_bytes(batch, 4096))} in a batch of {batch}" for batch in (1, 64, 1024)),
    }  # fmt: skip
    for name, encoder in model.encoders.items():
        facts[f"encoder {name}"] = (
            f"{_billions(encoder.stack.params + encoder.projection)} parameters, {len(encoder.stack.layers)} layers; "
            f"{encoder.outputs} places and {_giga(model.encoder_flops(name))} each"
        )
    if model.retrieval is not None:
        found = model.retrieval
        facts["retrieval"] = f"{format_seconds(found.latency_s)}, {format_bytes(found.nbytes)}, {found.tokens:,} more tokens"
    parts = _grid("part", "layers", "parameters", "active", "cached per token")
    for part, times in Counter(model.core.parts).items():
        each = model.core.hidden
        parts.add_row(
            type(part).__name__, f"{times}", _billions(times * part.params(each)), _billions(times * part.active(each)),
            format_bytes(2 * times * (part.cached(4096) - part.cached(4095))),
        )  # fmt: skip
    return Group(_pairs(facts), Text(), parts)


def _pairs(facts: dict[str, str]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    for name, text in facts.items():
        table.add_row(name, text)
    return table


def _grid(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i else "left")
    return table


def _billions(params: float) -> str:
    return f"{params / 1e9:.4g} billion" if params >= 1e8 else f"{params / 1e6:.3g} million"


def _giga(flops: float) -> str:
    return f"{flops / 1e9:,.4g} GFLOP"
