"""One experiment as one frozen value, made from overrides as on the command line. Hydra composes; this file judges."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from clustersim.model import Model, model_from
from clustersim.pick import did_you_mean
from clustersim.places import group_folder, options
from clustersim.types import InputError

GROUPS = ("model", "topology", "trace", "workload", "capacity", "placement", "exchange", "network", "compute", "experiment")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Run:
    """Everything one run depends on."""

    study: str                          # experiment name, or "runs"
    overrides: tuple[str, ...]          # what was asked beyond the defaults
    config: Mapping[str, Any]           # the resolved config, plain values
    model: Model
    topology: str
    tokens_per_gpu: int
    capacity_factor: float | None
    seed: int
    output: Path

    def options(self, group: str) -> tuple[str, dict[str, Any]]:
        """Name and options of a group's choice, for `pick`."""
        chosen = dict(self.config[group])
        return chosen.pop("name"), chosen


def compose(overrides: Sequence[str]) -> Run:
    """The run that these overrides describe.

    Raises:
        InputError: an unknown option or key (with the nearest known one), a value that cannot be, or a list of values.
    """
    parsed = _parse(overrides)
    for override in parsed:
        if override.is_sweep_override():
            raise InputError(f"{override.input_line}: several values make a sweep; add -m")
    config = _compose(overrides)
    choices = config.pop("hydra")["runtime"]["choices"]
    return _run(config, overrides, choices)


def sweep(overrides: Sequence[str]) -> Iterator[list[str]]:
    """The overrides of every job of a sweep, in order: the product of all lists of values, the last one fastest.

    Lists come from the overrides and from `hydra.sweeper.params` of an experiment; an override on the command line wins.
    """
    lists: dict[str, list[str]] = {}
    given = _parse(overrides)
    own = {override.get_key_element() for override in given}
    single = [override.input_line for override in given if not override.is_sweep_override()]
    params = _compose(single)["hydra"]["sweeper"].get("params") or {}
    for override in (*_parse([f"{key}={value}" for key, value in params.items() if key not in own]), *given):
        key = override.get_key_element()
        if override.is_sweep_override():
            lists[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            lists[key] = [override.input_line]
    return ([*job] for job in product(*lists.values()))


def is_sweep(overrides: Sequence[str]) -> bool:
    """Whether an experiment among the overrides asks for a sweep by itself."""
    if not any(text.startswith("+experiment=") for text in overrides):
        return False
    return bool(_compose([o.input_line for o in _parse(overrides) if not o.is_sweep_override()])["hydra"]["sweeper"].get("params"))


def _parse(overrides: Sequence[str]) -> list[Any]:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    for text in overrides:
        if "=" not in text and not text.startswith("~"):
            raise InputError(f"{text}: not an override; write key=value, for example capacity.factor=1.25")
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except OverrideParseException as error:
        raise InputError(f"{error.override}: cannot be read as key=value ({str(error).splitlines()[0]})") from error
    for override in parsed:
        _check_group(override)
    return list(parsed)


def _check_group(override: Any) -> None:
    group = override.key_or_group
    if group not in GROUPS:
        return
    known = list(options(group_folder(group)))
    values = override.sweep_iterator() if override.is_sweep_override() else [override.value()]
    for value in values:
        if isinstance(value, dict | list):
            raise InputError(f"{override.input_line}: {group} takes one option by name (known: {', '.join(known)})")
        if str(value) not in known:
            raise InputError(f"{group}={value}: there is no such {group}{did_you_mean(str(value), known)} (known: {', '.join(known)})")


def _compose(overrides: Sequence[str]) -> dict[str, Any]:
    """Hydra's composition as plain values, with its own settings under `hydra`."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    for group, package in (("topology", "topology"), ("experiment", "_global_")):
        for path in group_folder(group).glob("*.yaml"):
            node = OmegaConf.load(path)
            ConfigStore.instance().store(group=group, name=path.stem, node=node, package=package, provider=str(path))
    try:
        with initialize_config_module("clustersim.conf", version_base="1.3"):
            config = hydra_compose("config", overrides=list(overrides), return_hydra_config=True)
        hydra = OmegaConf.to_container(config.hydra, resolve=False)
        plain = {key: config._get_node(key) for key in config if key != "hydra"}
        values = {key: OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node._value() for key, node in plain.items()}
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(_one_line(error, overrides)) from error
    return {**values, "hydra": hydra}


def _one_line(error: Exception, overrides: Sequence[str]) -> str:
    """What is wrong with the overrides, in our words where we can tell."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    values = [o for o in OverridesParser.create().parse_overrides(list(overrides)) if o.key_or_group not in GROUPS]
    groups = [text for text in overrides if text not in {o.input_line for o in values}]
    if values:
        known = sorted(_leaves(_compose(groups)))
        for override in values:
            key = override.key_or_group
            if key not in known and not override.is_add() and not key.startswith("hydra"):
                near = did_you_mean(key, known)
                section = key.rpartition(".")[0]
                if owners := _options_with(section, key.rpartition(".")[2]):
                    return f"{key}: belongs to {section}={' or '.join(owners)}, and another {section} is chosen"
                siblings = [k for k in known if k.rpartition(".")[0] == section] or sorted({k.partition(".")[0] for k in known})
                return f"{key}: there is no such key{near} (known: {', '.join(siblings)})"
    return " ".join(str(error).split())


def _options_with(group: str, key: str) -> list[str]:
    """The options of a group that have this key."""
    if group not in GROUPS:
        return []
    from omegaconf import OmegaConf

    return [name for name in options(group_folder(group)) if key in OmegaConf.load(group_folder(group) / f"{name}.yaml")]


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        if key != "hydra":
            yield f"{prefix}{key}"
            if isinstance(value, Mapping):
                yield from _leaves(value, f"{prefix}{key}.")


def _run(config: dict[str, Any], overrides: Sequence[str], choices: Mapping[str, str]) -> Run:
    """Judge the values that nobody else judges; plug-ins and topology are judged where they are made."""
    workload, capacity = config["workload"], config["capacity"]
    if workload["phase"] != "prefill":
        raise InputError(f"workload.phase={workload['phase']}: only prefill is built so far")
    for group in ("trace", "placement", "exchange", "network", "compute"):
        for key, value in config[group].items():
            if value == "???":
                raise InputError(f"{group}.{key}: {group}={config[group]['name']} needs it; write {group}.{key}=...")
    return Run(
        study=choices.get("experiment", "runs"),
        overrides=tuple(overrides),
        config=config,
        model=model_from(config["model"]),
        topology=choices["topology"],
        tokens_per_gpu=whole("workload.tokens_per_gpu", workload["tokens_per_gpu"], least=1),
        capacity_factor=None if capacity["factor"] is None else positive("capacity.factor", capacity["factor"]),
        seed=whole("seed", config["seed"], least=0),
        output=Path(str(config["output"])),
    )


def whole(key: str, value: Any, *, least: int) -> int:
    """`value` as a whole number from `least` up; InputError naming `key` otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{key}={value}: must be a whole number from {least} up")
    return value


def positive(key: str, value: Any) -> float:
    """`value` as a finite number above 0; InputError naming `key` otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InputError(f"{key}={value}: must be a number above 0")
    return float(value)
