"""One experiment as one frozen value, made from overrides as on the command line. What is composed elsewhere is judged here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

from clustersim.architecture import played
from clustersim.composition import composed, leaves, load_yaml, no_such_key, parse, shown
from clustersim.model import Model
from clustersim.parallel import Group, group_from
from clustersim.pick import did_you_mean
from clustersim.places import GROUPS, option_files
from clustersim.types import InputError
from clustersim.workload.serving import Decoding, decoding_from
from clustersim.workload.uneven import Uneven, uneven_from

HOW = ("output", "workers", "shard", "export", "config_dir")          # keys that say how and where to run, not what
PHASES = ("prefill", "decode", "training")
ALONE = ("seed", "replicates", "causes", "memory", *HOW)               # keys that belong to no group


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Run:
    """Everything one run depends on."""

    study: str                          # experiment name, or "runs"
    overrides: tuple[str, ...]          # what was asked beyond the defaults
    config: Mapping[str, Any]           # the resolved config, plain values
    model: Model
    topology: str
    tokens_per_gpu: int                 # that go through the model in a step; of a group of several GPUs each one's share
    group: Group                        # of GPUs that share attention; of a forward pass, one GPU in training
    group_tokens: int                   # that go through the model in a step and group
    decoding: Decoding | None           # None: prefill
    uneven: Uneven                      # how batches differ between GPUs
    capacity_factor: float | None
    seed: int
    output: Path
    causes: bool                        # play it again without each cause of a slow layer
    replicates: int                     # seeds, from `seed` on

    def options(self, group: str) -> tuple[str, dict[str, Any]]:
        """Name and options of a group's choice, for `pick`."""
        chosen = dict(self.config[group])
        return chosen.pop("name"), chosen


def compose(overrides: Sequence[str]) -> Run:
    """The run that these overrides describe.

    Raises:
        InputError: an unknown option or key (with the nearest known one), a value that cannot be, or a list of values.
    """
    for override in parse(overrides):
        if override.is_sweep_override():
            raise InputError(f"{override.input_line}: several values make a sweep; add -m")
    config = composed(overrides)
    return judged(config, overrides, config.pop("hydra")["choices"])


def sweep(overrides: Sequence[str]) -> Iterator[list[str]]:
    """The overrides of every job of a sweep, in order: the product of all lists of values, the last one fastest.

    Lists come from the overrides and from `hydra.sweeper.params` of an experiment; an override on the command line wins.
    """
    lists: dict[str, list[str]] = {}
    given = parse(overrides)
    own = {override.key_or_group for override in given}
    for override in given:
        if override.key_or_group in ("experiment", *HOW) and override.is_sweep_override():
            raise InputError(f"{override.input_line}: one {override.key_or_group} at a time")
    single = [override.input_line for override in given if not override.is_sweep_override()]
    params = composed(single)["hydra"]["params"]
    for override in (*parse([f"{key}={value}" for key, value in params.items() if key not in own]), *given):
        key = override.get_key_element()
        if override.is_sweep_override():
            lists[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            lists[key] = [override.input_line]
    return ([*job] for job in product(*lists.values()))


def what_is_run(overrides: Sequence[str]) -> list[str]:
    """The overrides that say what is run; not those of how, and where to."""
    return [text for text in overrides if text.lstrip("+").partition("=")[0].partition(".")[0] not in HOW]


def is_sweep(overrides: Sequence[str]) -> bool:
    """Whether an experiment among the overrides asks for a sweep by itself."""
    if not any(text.startswith("+experiment=") for text in overrides):
        return False
    single = [override.input_line for override in parse(overrides) if not override.is_sweep_override()]
    return bool(composed(single)["hydra"]["params"])


def judged(config: dict[str, Any], overrides: Sequence[str], choices: Mapping[str, str]) -> Run:
    """The run of a config, its values judged where nobody else does; plug-ins and topology are judged where they are made.

    Raises:
        InputError: a key that nobody reads, a value that cannot be.
    """
    own = None if config["config_dir"] is None else Path(str(config["config_dir"]))
    _check_keys(config, choices, own)
    _check_types(config, choices, own)
    workload, capacity = config["workload"], config["capacity"]
    if workload["phase"] not in PHASES:
        raise InputError(
            f"workload.phase={workload['phase']}: must be prefill, decode or training; write workload=decode"
            f"{did_you_mean(str(workload['phase']), PHASES)}"
        )
    of_group = "decode" if "context" in workload else "training" if "global_batch" in workload else "prefill"
    if workload["phase"] != of_group:
        raise InputError(f"workload.phase={workload['phase']}: is set by the group; write workload={workload['phase']}")
    decoding = decoding_from(workload)
    _check_needed(config)
    plain = (config["schedule"].get("name"), config["schedule"].get("shared")) == ("in_order", "after")
    if workload["phase"] == "training" and not plain:
        raise InputError(f"schedule={config['schedule']['name']}: orders a forward pass; training has parallel.order")
    if config["memory"] not in ("check", "ignore"):
        near = did_you_mean(str(config["memory"]), ("check", "ignore"))
        raise InputError(f"memory={shown(config['memory'])}: must be check or ignore{near}")
    model, sharing = played(config["model"]), Group()
    if decoding is not None and decoding.drafting:
        model = model.with_drafter(decoding.drafting)
    if workload["phase"] != "training":
        sharing = group_from(config["parallel"], experts=bool(model.n_experts))
    uneven = uneven_from(workload)
    batch = _tokens(workload, sharing) if uneven.batches is None else uneven.mean
    each = batch * (decoding.per_sequence if decoding else 1)
    return Run(
        study=choices.get("experiment", "runs"),
        overrides=tuple(overrides),
        config=config,
        model=model,
        topology=choices["topology"],
        tokens_per_gpu=-(-each // sharing.tensor),
        group=sharing,
        group_tokens=each,
        decoding=decoding if decoding is None else replace(decoding, sequences=batch),
        uneven=uneven,
        capacity_factor=capacity["factor"],         # judged with the rest of the capacity rule
        seed=whole("seed", config["seed"], least=0),
        output=_folder("output", config["output"]),
        causes=flag("causes", config["causes"]),
        replicates=whole("replicates", config["replicates"], least=1),
    )


def _check_needed(config: Mapping[str, Any]) -> None:
    """Every option has what its file leaves to the user."""
    for group in ("trace", "router", "placement", "decide", "exchange", "network", "compute", "schedule"):
        for key, value in config[group].items():
            if value == "???" or (key == "path" and not value):
                raise InputError(f"{group}.{key}: {group}={config[group]['name']} needs it; write {group}.{key}=...")


def _check_types(config: Mapping[str, Any], choices: Mapping[str, str], own: Path | None) -> None:
    """A value is of the type that its option's file has: the YAML is the schema. What the value may be is for who reads it.

    Null goes with all but true and false, and where the file has null or a list its reader knows better. Topology and
    model have readers of their own.
    """
    for group in sorted(choices.keys() & config.keys() & GROUPS.keys() - {"topology", "model"}):
        file = option_files(group, own)[choices[group]]
        for key, told in _schema(file, file.stat().st_mtime_ns).items():
            value: Any = config[group]
            for part in key.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
            if (value is None and told == "true or false" and "." not in key) or (value is not None and _type_of(value) != told):
                raise InputError(f"{group}.{key}={shown(value)}: must be {told}")


@lru_cache(maxsize=256)
def _schema(file: Path, changed: int) -> dict[str, str]:
    """What the keys of an option must be, of those whose file says it."""
    from omegaconf import OmegaConf

    said: Any = OmegaConf.to_container(load_yaml(file), resolve=False)
    types: dict[str, str] = {}

    def look(values: Mapping[Any, Any], prefix: str) -> None:
        for key, value in values.items():
            if isinstance(value, Mapping):
                look(value, f"{prefix}{key}.")
            elif value != "???" and "${" not in str(value) and (told := _type_of(value)) is not None:
                types[f"{prefix}{key}"] = told

    look(said, "")
    return types


def _type_of(value: Any) -> str | None:
    if isinstance(value, bool):
        return "true or false"
    return "a number" if isinstance(value, int | float) else "text" if isinstance(value, str) else None


def _check_keys(config: Mapping[str, Any], choices: Mapping[str, str], own: Path | None) -> None:
    """No key that nobody reads: `+capcity.factor=1` would add one. Topology, model, capacity and plug-ins see to theirs."""
    known = {key: [key] for key in config if key in (*GROUPS, *ALONE)}
    for group in ("trace", "workload", "capacity", "decide", "compute", "parallel", "cost"):
        chosen = load_yaml(option_files(group, own)[choices[group]])
        known[group] += [f"{group}.{key!s}" for key in chosen]
    known["export"] += [f"export.{key}" for key in ("timeline", "first_layer", "events", "arrows")]
    every = [key for keys in known.values() for key in keys]
    for key in leaves({key: value for key, value in config.items() if key not in known or len(known[key]) > 1}):
        if key not in every and not key.startswith("capacity."):
            raise InputError(no_such_key(key, every, own))


def _tokens(workload: Mapping[str, Any], group: Group) -> int:
    """Tokens, or sequences in flight, that a group is given at a time; in training those of a micro-batch, before it is split."""
    if workload["phase"] == "training":
        both = (whole(f"workload.{key}", workload[key], least=1) for key in ("micro_batch", "sequence"))
        return next(both) * next(both)
    each = whole("workload.tokens_per_gpu", workload["tokens_per_gpu"], least=1)
    if workload["tokens_per_group"] is None:
        return each * group.tensor
    return whole("workload.tokens_per_group", workload["tokens_per_group"], least=1)


def _folder(key: str, value: Any) -> Path:
    if not isinstance(value, str) or not value:
        raise InputError(f"{key}={shown(value)}: must be the name of a folder")
    return Path(value)


def flag(key: str, value: Any) -> bool:
    """`value` as true or false; InputError naming `key` otherwise."""
    if not isinstance(value, bool):
        raise InputError(f"{key}={shown(value)}: must be true or false")
    return value


def whole(key: str, value: Any, *, least: int) -> int:
    """`value` as a whole number from `least` up; InputError naming `key` otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{key}={shown(value)}: must be a whole number from {least} up")
    return value


def positive(key: str, value: Any) -> float:
    """`value` as a finite number above 0; InputError naming `key` otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InputError(f"{key}={shown(value)}: must be a number above 0")
    return float(value)
