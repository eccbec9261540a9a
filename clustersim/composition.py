"""Overrides to one config of plain values: Hydra composes, once for each set of group choices. Nothing is judged here.

A composition by Hydra takes a tenth of a second, so what single values change is set on a copy of what the group choices
gave: as Hydra would, or, where that is not plain, by Hydra. What is wrong with overrides is said here, in our words.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from clustersim.pick import did_you_mean
from clustersim.places import ADDED, GROUPS, PACKAGE, group_folder, groups, option_files, yaml_fault
from clustersim.types import InputError

FROM_FILES = {"topology": ("machine", "nodes"), "model": ("model", "hidden")}      # groups whose option may be one's own file
OWN = "config_dir"                      # the key that names a folder of one's own options
own_files: dict[str, str] = {}          # options given as files: "group=name" -> file as it was given


def parse(overrides: Sequence[str]) -> list[Any]:
    """Hydra's own reading of overrides, of which group choices are known to be on offer.

    Raises:
        InputError: not key=value, a setting of Hydra's, or an option that a group does not have.
    """
    if isinstance(overrides, str) or not all(isinstance(text, str) for text in overrides):
        raise InputError(f"overrides: must be a list of texts, for example ['capacity.factor=1.25'], and is {overrides!r}")
    for text in overrides:
        if text.startswith("~"):
            raise InputError(f"{text}: nothing can be left out, every key is needed; give it another value instead")
        if not text.partition("=")[0].strip("+ ") or "=" not in text:
            raise InputError(f"{text}: not an override; write key=value, for example capacity.factor=1.25")
    parsed = [_parsed(text) for text in overrides]
    for override in parsed:
        if override.package is not None or override.key_or_group.partition(".")[0].partition("/")[0] == "hydra":
            raise InputError(f"{override.input_line}: this setting of Hydra's has no effect here; leave it out")
    own = own_folder(parsed)
    for override in parsed:
        _check_group(override, own)
    return parsed


def own_folder(parsed: Sequence[Any]) -> Path | None:
    """The user's own folder of configs, where the overrides name one: `config_dir=FOLDER`.

    Raises:
        InputError: no such folder, one without groups, or an option in it that has the name of one of ours.
    """
    said = [override.value() for override in parsed if override.get_key_element() == OWN]
    if not said or said[-1] is None:
        return None
    folder = Path(str(said[-1]))
    if not folder.is_dir():
        raise InputError(f"{OWN}={folder}: there is no such folder")
    for group in (mine := [path.name for path in folder.iterdir() if path.is_dir()]):
        if group in GROUPS and (both := {path.stem for path in (folder / group).glob("*.yaml")} & option_files(group).keys()):
            raise InputError(f"{folder / group / min(both)}.yaml: clustersim has a {group} of that name; call it otherwise")
    if not mine:
        raise InputError(f"{OWN}={folder}: holds no folder of options, such as {folder / 'topology'} or {folder / 'experiment'}")
    return folder


@lru_cache(maxsize=4096)
def _parsed(text: str) -> Any:
    """One override, read once: the parser takes milliseconds, and the jobs of a sweep have most overrides in common."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException, OverrideParseException

    try:
        return OverridesParser.create().parse_override(text)
    except OverrideParseException as error:
        raise InputError(f"{error.override}: cannot be read as key=value ({_first_line(error)})") from error
    except HydraException as error:
        raise InputError(f"{text}: cannot be read as key=value ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def _check_group(override: Any, own: Path | None) -> None:
    group = override.key_or_group
    if group not in groups(own):
        return
    from hydra.core.override_parser.types import Glob

    known = sorted(option_files(group, own))
    offer = f"(known: {', '.join(known)})"
    if isinstance(override.value(), dict | list | Glob):
        raise InputError(f"{override.input_line}: {group} takes one option by name {offer}")
    plus = "+" if group in ADDED or group not in GROUPS else ""         # groups without a default
    if not override.input_line.startswith(f"{plus}{group}"):
        raise InputError(f"{override.input_line}: write {plus}{override.input_line.lstrip('+')}")
    for value in override.sweep_iterator() if override.is_sweep_override() else [override.value()]:
        if str(value) not in known and not (group in FROM_FILES and _is_file(value)):
            if group in FROM_FILES and str(value).endswith((".yaml", ".yml")):
                raise InputError(f"{group}={shown(value)}: there is no such file")
            if group == "model" and str(value).endswith(".json"):
                how = f"clustersim convert {value} --from hf-config -o my.yaml makes a file for model=my.yaml"
                raise InputError(f"{group}={shown(value)}: is no YAML file; {how}")
            raise InputError(f"{group}={shown(value)}: there is no such {group}{did_you_mean(str(value), known)} {offer}")


def composed(overrides: Sequence[str]) -> dict[str, Any]:
    """The whole config as plain values, equal to Hydra's composition of these overrides; a copy that the caller may change.

    Beside it, under `hydra`: `choices`, the option taken from each group; `params`, what an experiment sweeps; `refers`, whether
    a value is said by another key.

    Raises:
        InputError: what the overrides ask for cannot be composed.
    """
    parsed = parse(overrides)
    own = own_folder(parsed)
    chosen = (*groups(own), OWN)
    choosing = tuple(o.input_line for o in parsed if o.key_or_group in chosen)
    setting = [o for o in parsed if o.key_or_group not in chosen]
    try:
        base = _base(choosing, _stamp(choosing, own))
    except InputError:
        if not setting:
            raise
        return by_hydra(overrides)              # a value may be what is missing, or what is wrong
    values: dict[str, Any] = _copied(base)
    if setting and base["hydra"]["refers"]:
        return by_hydra(overrides)              # what refers to a value changes with it
    if "${" not in str(overrides) and all(_set(values, override) for override in setting):
        return values
    return by_hydra(overrides)


@lru_cache(maxsize=32)
def _base(choosing: tuple[str, ...], stamp: tuple[tuple[str, int], ...]) -> dict[str, Any]:
    """What the group choices alone give, for as long as no file of a config changes."""
    return by_hydra(choosing)


def _stamp(choosing: Sequence[str], mine: Path | None) -> tuple[tuple[str, int], ...]:
    """Every file that a composition may read, and when it was written."""
    folders = [PACKAGE / "conf", *(group_folder(group) for group in GROUPS)]
    folders += [path for path in mine.iterdir() if path.is_dir()] if mine is not None else []
    files = [entry for folder in folders for entry in os.scandir(folder) if entry.name.endswith(".yaml")]
    own = [text.partition("=")[2] for text in choosing if text.partition("=")[0] in FROM_FILES]
    stamp = [(entry.path, entry.stat().st_mtime_ns) for entry in files]
    return tuple(sorted(stamp + [(path, Path(path).stat().st_mtime_ns) for path in own if _is_file(path)]))


def _copied(value: Any) -> Any:
    """A copy of nested plain values, of which nothing is shared that can be changed."""
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list) else value


def _set(values: dict[str, Any], override: Any) -> bool:
    """Set one value as Hydra would; False where it takes Hydra to do so, or to say why it cannot be."""
    value = override.value()
    each = value if isinstance(value, list) else [value]
    if "[" in override.key_or_group or not all(one is None or isinstance(one, str | int | float | bool) for one in each):
        return False
    if "???" in each:
        return False
    *way, leaf = override.key_or_group.split(".")
    node: Any = values
    for part in way:
        node = node.get(part) if isinstance(node, dict) else None
    if not isinstance(node, dict) or isinstance(node.get(leaf), dict | list):
        return False
    if override.is_add() and node.get(leaf) is not None:
        return False
    if leaf not in node and not (override.is_add() or override.is_force_add()):
        return False
    plain = [str(one) if isinstance(one, str) else one for one in each]
    node[leaf] = plain if isinstance(value, list) else plain[0]
    return True


def by_hydra(overrides: Sequence[str]) -> dict[str, Any]:
    """As `composed`, by Hydra alone."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf, open_dict
    from omegaconf.errors import OmegaConfBaseException

    parsed = parse(overrides)
    register(own_folder(parsed))
    callers = GlobalHydra.instance().hydra             # we may be called from inside a Hydra application
    GlobalHydra.instance().hydra = None
    try:
        with initialize_config_module("clustersim.conf", version_base="1.3"):
            config = hydra_compose("config", overrides=with_own_files(overrides), return_hydra_config=True)
        hydra: dict[str, Any] = {"choices": dict(config.hydra.runtime.choices)}
        hydra["params"] = dict(config.hydra.sweeper.get("params") or {})
        with open_dict(config):
            del config["hydra"]
        values = OmegaConf.to_container(config, resolve=True)
        hydra["refers"] = values != OmegaConf.to_container(config, resolve=False)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(_one_line(error, overrides)) from error
    finally:
        GlobalHydra.instance().hydra = callers
    assert isinstance(values, dict)
    return {**{str(key): value for key, value in values.items()}, "hydra": hydra}


def register(own: Path | None = None) -> None:
    """Put the topologies and studies of this installation, and the options in a user's own folder, among Hydra's options."""
    from hydra.core.config_store import ConfigStore

    theirs = [(group, own / group) for group in groups(own)] if own is not None else []
    for group, folder in (("topology", group_folder("topology")), ("experiment", group_folder("experiment")), *theirs):
        package = group if group in GROUPS and group not in ADDED else "_global_"
        for path in sorted(folder.glob("*.yaml")):
            changed = path.stat().st_mtime_ns
            if _registered.get((group, path.stem)) != (path.absolute(), changed):          # storing one takes a millisecond
                node = _mapping(path)
                ConfigStore.instance().store(group=group, name=path.stem, node=node, package=package, provider=str(path))
                _registered[group, path.stem] = path.absolute(), changed


_registered: dict[tuple[str, str], tuple[Path, int]] = {}       # what Hydra's store holds under a name


def _mapping(path: Path) -> Any:
    """What an option's file sets, by key.

    Raises:
        InputError: not a YAML file, or one that sets no keys.
    """
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        node = load_yaml(path)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a YAML file: {yaml_fault(error)}") from error
    if not isinstance(node, DictConfig):
        raise InputError(f"{path}: sets no keys")
    return node


def _is_file(value: Any) -> bool:
    """Whether a topology or model is given as the YAML file that describes it."""
    return str(value).endswith((".yaml", ".yml")) and Path(str(value)).is_file()


def with_own_files(overrides: Sequence[str]) -> list[str]:
    """The overrides with `topology=my/machine.yaml` as `topology=machine`, and that file among Hydra's options; models alike."""
    from hydra.core.config_store import ConfigStore
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    known = []
    for text in overrides:
        key, _, value = text.partition("=")
        path = Path(value)
        if key in FROM_FILES and _is_file(path):
            try:
                node = load_yaml(path)
            except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
                raise InputError(f"{text}: not a YAML file: {yaml_fault(error)}") from error
            what, needed = FROM_FILES[key]
            if needed not in node:
                raise InputError(f"{text}: does not describe a {what} (no key {needed})")
            ConfigStore.instance().store(group=key, name=path.stem, node=node, package=key, provider=str(path))
            _registered.pop((key, path.stem), None)
            own_files[f"{key}={path.stem}"] = value
        known.append(f"{key}={path.stem}" if key in FROM_FILES and _is_file(path) else text)
    return known


def load_yaml(path: Path) -> Any:
    """A YAML file as OmegaConf has it, read once for as long as it does not change."""
    return _load(path, path.stat().st_mtime_ns)


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

    every = OverridesParser.create().parse_overrides(list(overrides))
    own = own_folder(every)
    values = [o for o in every if o.key_or_group not in (*groups(own), OWN)]
    choosing = [text for text in overrides if text not in {o.input_line for o in values}]
    if values:
        known = list(leaves(composed(choosing)))
        for override in values:
            key = override.key_or_group
            if key not in known and not override.is_add():
                return no_such_key(key, known, own)
    at = getattr(error, "full_key", None)
    return f"{at}: {_first_line(error)}" if at else " ".join(str(error).split())


def no_such_key(key: str, known: Sequence[str], own: Path | None = None) -> str:
    """What to say of a key that no group has; `known` holds all keys, those of groups included."""
    section, _, leaf = key.rpartition(".")
    if owners := _options_with(section, leaf, own):
        return f"{key}: belongs to {section}={' or '.join(owners)}, and another {section} is chosen"
    siblings = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == section}
    meant = [siblings[near] for near in get_close_matches(leaf, siblings, n=1)]
    meant += sorted(k for k in known if k.rpartition(".")[2] == leaf)
    if not siblings:
        meant += get_close_matches(key, known, n=1)
    near = f"; did you mean {meant[0]}?" if meant else ""
    beside = sorted(siblings.values()) or sorted({k.partition(".")[0] for k in known})
    return f"{key}: there is no such key{near} (known: {', '.join(beside)})"


def _options_with(group: str, key: str, own: Path | None) -> list[str]:
    """The options of a group that have this key."""
    if group not in GROUPS:
        return []
    keys_of = {name: load_yaml(path).keys() for name, path in option_files(group, own).items()}
    return [name for name, keys in keys_of.items() if key in keys]


def leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        if key != "hydra":
            yield f"{prefix}{key}"
            if isinstance(value, Mapping):
                yield from leaves(value, f"{prefix}{key}.")


def shown(value: Any) -> str:
    """`value` as it is written in an override."""
    return {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else str(value)
