"""The config groups and where their files are: at the top of a checkout, inside an installed package, in a folder of the user's.

A user's own folder (`--config-dir`) has folders named like groups, with further options; a folder of another name is a group
of its own, whose options may set any key.
"""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parent
GROUPS = {                      # group -> what is chosen by it
    "model": "the shape of the model",
    "topology": "the machine",
    "trace": "where router decisions come from",
    "router": "who goes to which expert",
    "workload": "what the GPUs are given",
    "capacity": "how much an expert takes",
    "placement": "where experts live",
    "decide": "when placements are decided, and on what load",
    "exchange": "how tokens travel",
    "network": "how links are shared",
    "compute": "how long GPUs compute",
    "schedule": "what runs beside what",
    "parallel": "how training splits a model over GPUs",
    "cost": "what GPU-hours are paid with",
    "setup": "a whole training run, as published where it was (write +setup=NAME)",
    "experiment": "a study (write +experiment=NAME)",
}
ADDED = ("setup", "experiment")         # groups that a run need not choose from: written with a plus


def data_folder(name: str) -> Path:
    """The folder `topologies` or `experiments` that belongs to this installation."""
    bundled = PACKAGE / "_bundled" / name
    return bundled if bundled.is_dir() else PACKAGE.parent / name


def group_folder(group: str) -> Path:
    """Where the options of a config group are."""
    return {"topology": data_folder("topologies"), "experiment": data_folder("experiments")}.get(group, PACKAGE / "conf" / group)


def groups(own: Path | None = None) -> dict[str, str]:
    """All groups and what is chosen by each, those of a user's own folder last."""
    theirs = sorted(path.name for path in own.iterdir() if path.is_dir() and path.name[0] not in "._") if own is not None else []
    return GROUPS | {name: f"your own (write +{name}=NAME)" for name in theirs if name not in GROUPS}


def option_files(group: str, own: Path | None = None) -> dict[str, Path]:
    """The options of a group, ours and then the user's: name -> file. Where both have a name, the file is ours."""
    folders = [group_folder(group)] if group in GROUPS else []
    folders += [own / group] if own is not None else []
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.yaml")):
            found.setdefault(path.stem, path)
    return found


def options_of(group: str, own: Path | None = None) -> dict[str, str]:
    """The options of a group, ours and then the user's: name -> what it is."""
    return {name: _first_comment(path) for name, path in option_files(group, own).items()}


def options(folder: Path) -> dict[str, str]:
    """The YAML files of a folder: name -> its first comment line, which says what it is. Sorted by name."""
    return {path.stem: _first_comment(path) for path in sorted(folder.glob("*.yaml"))}


def yaml_fault(error: Exception) -> str:
    """What is wrong with a YAML file, and in which line, in one line."""
    mark = getattr(error, "problem_mark", None)
    what = str(getattr(error, "problem", None) or error).splitlines()[0]
    return what if mark is None else f"{what} in line {mark.line + 1}, column {mark.column + 1}"


def _first_comment(path: Path) -> str:
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.strip()
        if text.startswith("#") and not text.startswith("# @package"):
            return text.lstrip("# ").rstrip()
        if text and not text.startswith("#"):
            break
    return ""
