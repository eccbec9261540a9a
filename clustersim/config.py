"""One experiment as one frozen value, made from overrides as on the command line. Hydra composes; this file judges."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from clustersim.model import Model, model_from
from clustersim.pick import did_you_mean
from clustersim.places import GROUPS, group_folder, options
from clustersim.types import InputError


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
    own = {override.key_or_group for override in given}
    for override in given:
        if override.key_or_group == "experiment" and override.is_sweep_override():
            raise InputError(f"{override.input_line}: one experiment at a time")
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
    single = [override.input_line for override in _parse(overrides) if not override.is_sweep_override()]
    return bool(_compose(single)["hydra"]["sweeper"].get("params"))


def _parse(overrides: Sequence[str]) -> list[Any]:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException, OverrideParseException

    for text in overrides:
        if text.startswith("~"):
            raise InputError(f"{text}: nothing can be left out, every key is needed; give it another value instead")
        if not text.partition("=")[0].strip("+ ") or "=" not in text:
            raise InputError(f"{text}: not an override; write key=value, for example capacity.factor=1.25")
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except OverrideParseException as error:
        raise InputError(f"{error.override}: cannot be read as key=value ({_first_line(error)})") from error
    except HydraException as error:
        raise InputError(f"{' '.join(overrides)}: cannot be read as key=value ({_first_line(error)})") from error
    for override in parsed:
        if override.package is not None or override.key_or_group.partition(".")[0].partition("/")[0] == "hydra":
            raise InputError(f"{override.input_line}: this setting of Hydra's has no effect here; leave it out")
        _check_group(override)
    return list(parsed)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def _check_group(override: Any) -> None:
    group = override.key_or_group
    if group not in GROUPS:
        return
    from hydra.core.override_parser.types import Glob

    known = list(options(group_folder(group)))
    offer = f"(known: {', '.join(known)})"
    if isinstance(override.value(), dict | list | Glob):
        raise InputError(f"{override.input_line}: {group} takes one option by name {offer}")
    plus = "+" if group == "experiment" else ""         # the one group without a default
    if not override.input_line.startswith(f"{plus}{group}"):
        raise InputError(f"{override.input_line}: write {plus}{override.input_line.lstrip('+')}")
    for value in override.sweep_iterator() if override.is_sweep_override() else [override.value()]:
        if str(value) not in known and not (group == "topology" and _is_file(value)):
            raise InputError(f"{group}={shown(value)}: there is no such {group}{did_you_mean(str(value), known)} {offer}")


def _compose(overrides: Sequence[str]) -> dict[str, Any]:
    """Hydra's composition as plain values, with its own settings under `hydra`."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf, open_dict
    from omegaconf.errors import OmegaConfBaseException

    for group, package in (("topology", "topology"), ("experiment", "_global_")):
        for path in group_folder(group).glob("*.yaml"):
            node = _load(path, path.stat().st_mtime_ns)
            ConfigStore.instance().store(group=group, name=path.stem, node=node, package=package, provider=str(path))
    callers = GlobalHydra.instance().hydra             # we may be called from inside a Hydra application
    GlobalHydra.instance().hydra = None
    try:
        with initialize_config_module("clustersim.conf", version_base="1.3"):
            config = hydra_compose("config", overrides=_with_own_files(overrides), return_hydra_config=True)
        hydra = OmegaConf.to_container(config.hydra, resolve=False)
        with open_dict(config):
            del config["hydra"]
        values = OmegaConf.to_container(config, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(_one_line(error, overrides)) from error
    finally:
        GlobalHydra.instance().hydra = callers
    assert isinstance(values, dict)
    return {**{str(key): value for key, value in values.items()}, "hydra": hydra}


def _is_file(value: Any) -> bool:
    """Whether a topology is given as the YAML file that describes it."""
    return str(value).endswith((".yaml", ".yml")) and Path(str(value)).is_file()


def _with_own_files(overrides: Sequence[str]) -> list[str]:
    """The overrides with `topology=my/machine.yaml` as `topology=machine`, and that file among Hydra's options."""
    from hydra.core.config_store import ConfigStore
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    known = []
    for text in overrides:
        key, _, value = text.partition("=")
        path = Path(value)
        if key == "topology" and _is_file(path):
            try:
                node = _load(path, path.stat().st_mtime_ns)
            except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
                raise InputError(f"{text}: not a YAML file: {_first_line(error)}") from error
            if "nodes" not in node:
                raise InputError(f"{text}: does not describe a machine (no key nodes)")
            ConfigStore.instance().store(group="topology", name=path.stem, node=node, package="topology", provider=str(path))
        known.append(f"topology={path.stem}" if key == "topology" and _is_file(path) else text)
    return known


@cache
def _load(path: Path, changed: int) -> Any:
    """A YAML file, read once for as long as it does not change."""
    from omegaconf import OmegaConf

    if path.parent != group_folder("topology"):
        return OmegaConf.load(path)
    import yaml

    # there are many machines: by libyaml all of them take 30 ms, not 90
    return OmegaConf.create(yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def _one_line(error: Exception, overrides: Sequence[str]) -> str:
    """What is wrong with the overrides, in our words where we can tell."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    values = [o for o in OverridesParser.create().parse_overrides(list(overrides)) if o.key_or_group not in GROUPS]
    groups = [text for text in overrides if text not in {o.input_line for o in values}]
    if values:
        known = list(_leaves(_compose(groups)))
        for override in values:
            key = override.key_or_group
            if key not in known and not override.is_add():
                return _no_such_key(key, known)
    at = getattr(error, "full_key", None)
    return f"{at}: {_first_line(error)}" if at else " ".join(str(error).split())


def _no_such_key(key: str, known: Sequence[str]) -> str:
    """What to say of a key that no group has; `known` holds all keys, those of groups included."""
    section, _, leaf = key.rpartition(".")
    if owners := _options_with(section, leaf):
        return f"{key}: belongs to {section}={' or '.join(owners)}, and another {section} is chosen"
    siblings = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == section}
    meant = [siblings[near] for near in get_close_matches(leaf, siblings, n=1)]
    meant += sorted(k for k in known if k.rpartition(".")[2] == leaf)
    if not siblings:
        meant += get_close_matches(key, known, n=1)
    near = f"; did you mean {meant[0]}?" if meant else ""
    beside = sorted(siblings.values()) or sorted({k.partition(".")[0] for k in known})
    return f"{key}: there is no such key{near} (known: {', '.join(beside)})"


def _options_with(group: str, key: str) -> list[str]:
    """The options of a group that have this key."""
    if group not in GROUPS:
        return []
    from omegaconf import OmegaConf

    keys_of = {name: OmegaConf.load(group_folder(group) / f"{name}.yaml").keys() for name in options(group_folder(group))}
    return [name for name, keys in keys_of.items() if key in keys]


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        if key != "hydra":
            yield f"{prefix}{key}"
            if isinstance(value, Mapping):
                yield from _leaves(value, f"{prefix}{key}.")


def _run(config: dict[str, Any], overrides: Sequence[str], choices: Mapping[str, str]) -> Run:
    """Judge the values that nobody else judges; plug-ins and topology are judged where they are made."""
    _check_keys(config, choices)
    workload, capacity = config["workload"], config["capacity"]
    if workload["phase"] != "prefill":
        raise InputError(f"workload.phase={workload['phase']}: only prefill is built so far")
    for group in ("trace", "router", "placement", "decide", "exchange", "network", "compute"):
        for key, value in config[group].items():
            if value == "???" or (key == "path" and not value):
                raise InputError(f"{group}.{key}: {group}={config[group]['name']} needs it; write {group}.{key}=...")
    return Run(
        study=choices.get("experiment", "runs"),
        overrides=tuple(overrides),
        config=config,
        model=model_from(config["model"]),
        topology=choices["topology"],
        tokens_per_gpu=whole("workload.tokens_per_gpu", workload["tokens_per_gpu"], least=1),
        capacity_factor=capacity["factor"],         # judged with the rest of the capacity rule
        seed=whole("seed", config["seed"], least=0),
        output=_folder("output", config["output"]),
    )


def _check_keys(config: Mapping[str, Any], choices: Mapping[str, str]) -> None:
    """No key that nobody reads: `+capcity.factor=1` would add one. Topology, model, capacity and plug-ins see to theirs."""
    from omegaconf import OmegaConf

    known = {key: [key] for key in config if key in (*GROUPS, "seed", "output", "export")}
    for group in ("trace", "workload", "capacity", "decide", "compute"):
        chosen = OmegaConf.load(group_folder(group) / f"{choices[group]}.yaml")
        known[group] += [f"{group}.{key!s}" for key in chosen]
    known["export"] += [f"export.{key}" for key in ("timeline", "first_layer", "events", "arrows")]
    every = [key for keys in known.values() for key in keys]
    for key in _leaves({key: value for key, value in config.items() if key not in known or len(known[key]) > 1}):
        if key not in every and not key.startswith("capacity."):
            raise InputError(_no_such_key(key, every))


def _folder(key: str, value: Any) -> Path:
    if not isinstance(value, str) or not value:
        raise InputError(f"{key}={shown(value)}: must be the name of a folder")
    return Path(value)


def shown(value: Any) -> str:
    """`value` as it is written in an override."""
    return {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else str(value)


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
