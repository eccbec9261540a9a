"""Which run it is: the run_id, by the contents of everything that a run depends on. Runs nothing and writes nothing."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from clustersim.config import HOW, Run
from clustersim.kernels import kernel_digest
from clustersim.places import PACKAGE
from clustersim.types import InputError
from clustersim.workload.sampler_parameters import parameters_file

PHYSICS = 14             # raised whenever the same config gives other numbers; part of every run_id

KERNELS = (("compute", "constants"), ("exchange", "kernel"), ("workload", "framework"))      # keys that name a file of constants
TINY = PACKAGE / "workload" / "data" / "tiny"   # the trace that comes with the package


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Identity:
    """A run by its contents."""

    run_id: str                         # first 12 hex digits of the sha256 of `depends`
    depends: dict[str, Any]             # the config without paths and comments, sha256 of files, version of the physics
    config: dict[str, Any]              # the config as run.json and the tables tell it
    trace_sha256: str | None            # of what the trace is read or drawn from


def identify(run: Run) -> Identity:
    """The identity of a run.

    Files count by what is in them: a trace by its bytes, YAML by its values. Where they are, when they were written and
    what their comments and `sources` say is not in it. Of a plug-in of the user's (`package.module:function`) the file counts.

    Raises:
        InputError: a file that the run depends on cannot be read.
    """
    config = {key: value for key, value in run.config.items() if key not in HOW}
    config["topology"] = {"name": run.topology, **config["topology"]}
    trace = dict(config["trace"])
    digest = trace_digest(trace)
    for key in ("path", "parameters", "preset", "text"):        # the contents say it
        trace.pop(key, None)
    said = {**_without_sources(config), "trace": trace}
    files = {name: _file_digest(*stamp) for name, stamp in _own_plug_ins(config)}
    for group, key in KERNELS:
        if kernel := config[group].get(key):
            files[f"{group}.{key}"] = kernel_digest(str(kernel))
            said[group] = {**said[group], key: None}
    if config["decide"]["name"] == "load_file":
        files["decide.path"] = trace_digest({"name": "file", "path": config["decide"]["path"]}) or ""
        said["decide"] = {**said["decide"], "path": None}
    depends = {"config": said, "trace_sha256": digest, "physics": PHYSICS} | ({"files_sha256": files} if files else {})
    text = json.dumps(depends, sort_keys=True, default=str)
    return Identity(
        run_id=hashlib.sha256(text.encode()).hexdigest()[:12], depends=depends, config=config, trace_sha256=digest
    )


def trace_path(trace: Mapping[str, Any]) -> Path | None:
    """The file or folder that a trace's config names; None where it is made up without one."""
    if trace["name"] == "tiny":
        return TINY
    if trace["name"] == "file":
        return Path(str(trace["path"]))
    if trace["name"] == "live":
        return Path(str(trace["text"])) if trace.get("text") else None
    if trace["name"] == "sampled" and trace.get("preset") is not None:
        return parameters_file(trace["preset"], trace.get("parameters"))
    return None


def trace_digest(trace: Mapping[str, Any]) -> str | None:
    """sha256 of what a trace's config names; None where it names nothing, or what is not there: reading it will say so."""
    path = trace_path(trace)
    if path is None:
        return None
    files = [path]
    if trace["name"] in ("tiny", "file"):
        tokens = path / "tokens.parquet" if path.is_dir() else path
        files = [tokens, *(tokens.with_name(f"{name}.parquet") for name in ("sequences", "counts"))]
    digest = hashlib.sha256()
    for file in files:
        if file.is_file():
            digest.update(_file_digest(*_stamp(file)).encode())
    return digest.hexdigest()


def _own_plug_ins(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[Path, int, int]]]:
    """Name and file of every plug-in that is the user's."""
    for name in sorted({text for text in _texts(config) if ":" in text}):
        module, _, function = name.partition(":")
        if not (module.replace(".", "").isidentifier() and function.isidentifier()) or module.startswith("clustersim."):
            continue                    # an address, a sentence; ours, for which the version of the physics stands
        try:
            found = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            continue                    # picking it will say what is wrong
        if found is not None and found.origin is not None and Path(found.origin).is_file():
            yield name, _stamp(Path(found.origin))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key != "sources":
                yield from _texts(inner)
    elif isinstance(value, str):
        yield value


def _without_sources(value: Any) -> Any:
    """A config without its remarks on where numbers are from."""
    if isinstance(value, Mapping):
        return {key: _without_sources(inner) for key, inner in value.items() if key != "sources"}
    return value


def _stamp(file: Path) -> tuple[Path, int, int]:
    """A file, and what changes with it."""
    seen = file.stat()
    return file.absolute(), seen.st_mtime_ns, seen.st_size


@lru_cache(maxsize=256)
def _file_digest(file: Path, changed: int, size: int) -> str:
    """sha256 of a file, read once for as long as it does not change; of YAML, of the values in it."""
    try:
        with file.open("rb") as opened:
            if file.suffix in (".yaml", ".yml"):
                return _values_digest(opened.read())
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from error


def _values_digest(text: bytes) -> str:
    import yaml

    try:
        values = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, UnicodeDecodeError):
        return hashlib.sha256(text).hexdigest()         # reading it will say what is wrong
    return hashlib.sha256(json.dumps(_without_sources(values), sort_keys=True, default=str).encode()).hexdigest()
