"""Where the data files are: in a checkout at the top of the repository, in an installed wheel inside the package."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parent


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
