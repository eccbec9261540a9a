"""The config groups, and where their files are: at the top of a checkout, or inside the package of an installed wheel."""

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
    "parallel": "how training splits a model over GPUs",
    "experiment": "a study (write +experiment=NAME)",
}


def data_folder(name: str) -> Path:
    """The folder `topologies` or `experiments` that belongs to this installation."""
    bundled = PACKAGE / "_bundled" / name
    return bundled if bundled.is_dir() else PACKAGE.parent / name


def group_folder(group: str) -> Path:
    """Where the options of a config group are."""
    return {"topology": data_folder("topologies"), "experiment": data_folder("experiments")}.get(group, PACKAGE / "conf" / group)


def options(folder: Path) -> dict[str, str]:
    """The YAML files of a folder: name -> its first comment line, which says what it is. Sorted by name."""
    return {path.stem: _first_comment(path) for path in sorted(folder.glob("*.yaml"))}


def _first_comment(path: Path) -> str:
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.strip()
        if text.startswith("#") and not text.startswith("# @package"):
            return text.lstrip("# ").rstrip()
        if text and not text.startswith("#"):
            break
    return ""
