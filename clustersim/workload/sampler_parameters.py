"""What the sampler is told: parameters of routing without a trace, as presets, as files, changed by keys. Draws nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from clustersim.pick import did_you_mean, find
from clustersim.places import PACKAGE
from clustersim.types import Floats, InputError
from clustersim.workload import sampler_popularity as families
from clustersim.workload.sampler_popularity import check_spread
from clustersim.writing import replacing

SCHEMA = "sampler/1"
PRESETS = PACKAGE / "workload" / "data" / "presets"
LOAD_UNITS = 100_000                # recorded loads are written as whole numbers of this many choices
MOST_DIMENSIONS = 64

PER_LAYER = {                       # key -> lowest and highest value; one number, or one per layer
    "dimension": (1.0, float(MOST_DIMENSIONS)),
    "topic": (0.0, 1.0),
    "fast": (0.0, 1.0),
    "slow": (0.0, 1.0),
    "alignment": (0.0, 1.0),
}
SINGLE = {                          # key -> lowest and highest value; one number
    "fast_memory": (0.0, 0.9999),
    "slow_memory": (0.0, 0.9999),
    "turn": (0.0, math.pi / 2),
    "sharpness": (0.0, 100.0),
}
TOKENS = ("correlated", "independent")
OWN = ("schema", "fitted_to", "tokens", "popularity", "spread", "domains")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Domain:
    """A kind of text, with its own popular experts."""

    name: str
    share: float                    # of the sequences, which are all of one length
    spread: Floats                  # [layers or 1] parameter of the popularity's family
    load: Floats | None = None      # [layers, experts] recorded shares of the load; None: drawn


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Parameters:
    """Everything the sampler depends on beside the model and the seed. docs/sampler.md has the formulas.

    A token's logits in a layer are directions . latent + bias. Per layer, one value each or one for all layers:
    """

    name: str                       # preset or file
    tokens: str                     # correlated or independent
    popularity: str                 # family of the loads: sampler_popularity
    domains: tuple[Domain, ...]
    dimension: Floats               # of the latent vector, may be broken: the fewer, the more experts go together
    topic: Floats                   # share of the latent variance that is the sequence's own
    fast: Floats                    # loading, in the rest, of the memory of the last few tokens
    slow: Floats                    # loading of the longer memory
    alignment: Floats               # correlation of an expert's direction with that of one expert of the layer before
    fast_memory: float              # what a memory keeps from one token to the next
    slow_memory: float
    turn: float                     # angle, from first to last layer, by which all latent vectors turn
    sharpness: float                # gate weights are softmax(sharpness x logits of the chosen)

    @property
    def memory_correlation(self) -> float:
        """Of the two memories, which come from the same tokens."""
        f, s = self.fast_memory, self.slow_memory
        return math.sqrt((1 - f * f) * (1 - s * s)) / (1 - f * s)

    @property
    def own(self) -> Floats:
        """Loading of what a token brings itself, [layers or 1]: with the memories it makes a variance of 1."""
        rest = 1 - self.fast**2 - self.slow**2 - 2 * self.fast * self.slow * self.memory_correlation
        return np.asarray(np.sqrt(np.maximum(rest, 0.0)), np.float64)

    @property
    def shape(self) -> tuple[int, int] | None:
        """(layers, experts) of the recorded loads; None when there are none."""
        loads = [domain.load for domain in self.domains]
        return None if loads[0] is None else (int(loads[0].shape[0]), int(loads[0].shape[1]))


def load_parameters(preset: str, path: str | None = None) -> Parameters:
    """The parameters in the file `path`, or else those of a preset.

    Raises:
        InputError: no such preset or file, or something wrong in it.
    """
    where = f"preset {preset}" if path is None else f"trace.parameters={path}"
    return read_parameters(parameters_file(preset, path), where)


def parameters_file(preset: str, path: str | None) -> Path:
    """The file that holds them; InputError: no such preset."""
    if path is not None:
        return Path(path)
    known = preset_names()
    if preset not in known:
        raise InputError(
            f"trace.preset={preset}: there is no such preset{did_you_mean(str(preset), known)} (known: {', '.join(known)})"
        )
    return PRESETS / f"{preset}.yaml"


def preset_names() -> list[str]:
    """The presets, sorted."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def read_parameters(path: str | Path, where: str) -> Parameters:
    """The parameters in a file; `where` begins every error line.

    Raises:
        InputError: no such file, not YAML, another schema, a key missing or unknown, a value out of its range.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise InputError(f"{where}: cannot be read ({reason}); `clustersim fit TRACE -o FILE` writes one") from error
    try:
        given = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise InputError(f"{where}: not YAML ({' '.join(str(error).split())[:120]})") from error
    if not isinstance(given, dict) or given.get("schema") != SCHEMA:
        found = given.get("schema") if isinstance(given, dict) else given
        raise InputError(f"{where}: schema is {found!r}; `clustersim fit` writes {SCHEMA!r}")
    return _parameters(given, file.stem, where)


def changed(parameters: Parameters, keys: Mapping[str, Any]) -> Parameters:
    """The parameters with what was asked for on the command line; keys that are None change nothing.

    alpha, sigma and zipf say how uneven experts are (Dirichlet, lognormal, Zipf) and replace recorded loads.

    Raises:
        InputError: a value out of its range, or two ways to say how uneven experts are.
    """
    given = {key: value for key, value in keys.items() if value is not None}
    uneven = {"alpha": "dirichlet", "sigma": "lognormal", "zipf": "zipf"}
    asked = [key for key in uneven if key in given]
    if len(asked) > 1:
        raise InputError(f"trace.{asked[1]}={given[asked[1]]}: trace.{asked[0]} says already how uneven experts are; give one")
    if "domains" in given:
        parameters = replace(parameters, domains=_even_domains(given.pop("domains"), parameters.domains[0].spread, "trace"))
    for key in asked:
        spread = np.array([check_spread(given.pop(key), f"trace.{key}")])
        domains = tuple(replace(domain, spread=spread, load=None) for domain in parameters.domains)
        parameters = replace(parameters, popularity=uneven[key], domains=domains)
    if "tokens" in given:
        parameters = replace(parameters, tokens=_tokens(given.pop("tokens"), "trace"))
    values: dict[str, Any] = {key: _per_layer(key, value, "trace.") for key, value in given.items()}
    return _checked(replace(parameters, **values), "trace") if values else parameters


def write_parameters(parameters: Parameters, path: str | Path, fitted_to: str) -> None:
    """Write the parameters to a file that `trace.parameters` can name; its first line says what they are."""
    with replacing(Path(path)) as partial:
        partial.write_text(as_text(parameters, fitted_to), encoding="utf-8")


def as_text(parameters: Parameters, fitted_to: str) -> str:
    """The parameters as YAML."""
    lines = [
        f"# Sampler parameters fitted to {fitted_to} (clustersim fit)", f"schema: {SCHEMA}", f"fitted_to: {fitted_to!r}",
        f"tokens: {parameters.tokens}",
    ]  # fmt: skip
    lines += [f"{key}: {_rounded(getattr(parameters, key))}" for key in PER_LAYER]
    lines += [f"{key}: {getattr(parameters, key):.4g}" for key in SINGLE]
    lines += [f"popularity: {parameters.popularity}", "domains:"]
    for domain in parameters.domains:
        lines += [f"  - name: {domain.name!r}", f"    share: {domain.share:.6g}", f"    spread: {_rounded(domain.spread)}"]
        if domain.load is not None:
            lines.append(f"    load:    # of {LOAD_UNITS:,} choices of a layer, how many each expert gets")
            lines += [f"      - {np.rint(row * LOAD_UNITS).astype(int).tolist()}" for row in domain.load]
    return "\n".join(lines) + "\n"


def _rounded(values: Floats) -> str:
    return "[" + ", ".join(f"{value:.4g}" for value in values) + "]"


# ---- judging


def _parameters(given: Mapping[str, Any], name: str, where: str) -> Parameters:
    known = (*OWN, *PER_LAYER, *SINGLE)
    if unknown := sorted(given.keys() - set(known)):
        raise InputError(f"{where}: {unknown[0]}: there is no such key{did_you_mean(str(unknown[0]), known)}")
    if missing := [key for key in (*PER_LAYER, *SINGLE, "popularity", "domains") if key not in given]:
        raise InputError(f"{where}: {missing[0]}: is missing")
    popularity = str(given["popularity"])
    find(families, popularity, f"{where}: popularity")
    values: dict[str, Any] = {key: _per_layer(key, given[key], f"{where}: ") for key in PER_LAYER}
    values |= {key: _number(given[key], *SINGLE[key], f"{where}: {key}") for key in SINGLE}
    if isinstance(given["domains"], int):
        spread = _spreads(given.get("spread"), f"{where}: spread")
        domains = _even_domains(given["domains"], spread, where)
    else:
        domains = _domains(given["domains"], where)
    parameters = Parameters(
        name=name, tokens=_tokens(given.get("tokens", "correlated"), where), popularity=popularity, domains=domains, **values
    )
    return _checked(parameters, where)


def _checked(parameters: Parameters, where: str) -> Parameters:
    rest = parameters.fast**2 + parameters.slow**2 + 2 * parameters.fast * parameters.slow * parameters.memory_correlation
    if (rest > 1 + 1e-9).any():
        raise InputError(f"{where}: fast and slow take {rest.max():.3g} of the variance beside the topic; at most 1 is there")
    return parameters


def _tokens(value: Any, where: str) -> str:
    if value not in TOKENS:
        raise InputError(f"{where}.tokens={value}: must be {' or '.join(TOKENS)}")
    return str(value)


def _per_layer(key: str, value: Any, where: str) -> Floats:
    values = value if isinstance(value, list) and value else [value]
    return np.array([_number(one, *PER_LAYER[key], f"{where}{key}") for one in values])


def _spreads(value: Any, key: str) -> Floats:
    values = value if isinstance(value, list) and value else [value]
    return np.array([check_spread(one, key) for one in values])


def _number(value: Any, least: float, most: float, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise InputError(f"{key}={value}: must be a number from {least:g} to {most:.4g}")
    return float(value)


def _even_domains(number: Any, spread: Floats, where: str) -> tuple[Domain, ...]:
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= 10_000:
        raise InputError(f"{where}.domains={number}: must be a whole number from 1 to 10000")
    return tuple(Domain(name=str(i), share=1 / number, spread=spread) for i in range(number))


def _domains(given: Any, where: str) -> tuple[Domain, ...]:
    if not isinstance(given, list) or not given or not all(isinstance(one, dict) for one in given):
        raise InputError(f"{where}: domains: must be a number of domains, or a list of them with name, share and spread")
    domains = [_domain(one, f"{where}: domain {one.get('name')}") for one in given]
    if len({None if domain.load is None else domain.load.shape for domain in domains}) > 1:
        raise InputError(f"{where}: domains: all have a load of the same layers and experts, or none has")
    total = sum(domain.share for domain in domains)
    return tuple(replace(domain, share=domain.share / total) for domain in domains)


def _domain(given: Mapping[str, Any], where: str) -> Domain:
    if unknown := sorted(given.keys() - {"name", "share", "spread", "load"}):
        raise InputError(f"{where}: {unknown[0]}: there is no such key (known: name, share, spread, load)")
    share = _number(given.get("share"), 1e-9, math.inf, f"{where}: share")
    return Domain(
        name=str(given.get("name")), share=share, spread=_spreads(given.get("spread"), f"{where}: spread"),
        load=_load(given["load"], where) if "load" in given else None,
    )


def _load(rows: Sequence[Any], where: str) -> Floats:
    try:
        load = np.array(rows, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: load: must be a row of numbers for every layer, all of one length") from error
    if load.ndim != 2 or not np.isfinite(load).all() or (load < 0).any() or (load.sum(1) <= 0).any():
        raise InputError(f"{where}: load: must be a row of numbers from 0 up for every layer, none of them all 0")
    return np.asarray(load / load.sum(1, keepdims=True), np.float64)
