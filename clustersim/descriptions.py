"""What the keys of an option mean: the comments beside them in its YAML file. Reads lines; composes and judges nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from clustersim.places import PACKAGE, option_files

_KEY = re.compile(r" *(\w+):(?: +(.*))?")
MANY = 1 << 20              # columns that no line is indented by


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """A key as its file has it."""

    value: str                  # as it is written; empty for a group of keys
    meaning: str                # empty where the file does not say it


def described(group: str, option: str, own: Path | None = None) -> dict[str, Described]:
    """The keys of an option, dotted and with its group, in the order of its file; `name` apart, which is the choice itself.

    A key that the file sets without a word means what the group's default option says of it; of models, whose comments are
    about single values, nothing is taken over.

    Args:
        own: the user's own folder of options.
    """
    files = option_files(group, own)
    default = files.get(default_options().get(group, ""))
    there = {} if default is None or group == "model" else _keys(default)
    return {
        f"{group}.{name}": key if key.meaning or name not in there else Described(value=key.value, meaning=there[name].meaning)
        for name, key in _keys(files[option]).items() if name != "name"
    }  # fmt: skip


def default_options() -> dict[str, str]:
    """The option that a run takes of every group unless told otherwise."""
    lines = (PACKAGE / "conf" / "config.yaml").read_text(encoding="utf-8").splitlines()
    return dict(match.groups() for line in lines if (match := re.fullmatch(r"  - (\w+): (\w+)", line)))  # type: ignore[misc]


def _keys(file: Path) -> dict[str, Described]:
    """The keys of a file by their dotted names; `sources` and what Hydra reads apart.

    A comment goes on in lines that have nothing else and are indented. The items of a list are the value of its key.
    """
    found: dict[str, Described] = {}
    way: list[tuple[int, str]] = []             # the groups that the line is in, and how far each is indented
    last, item = "", MANY
    for line in file.read_text(encoding="utf-8").splitlines():
        text = line.lstrip()
        if last and text.startswith("#") and line != text:
            found[last] = Described(value=found[last].value, meaning=f"{found[last].meaning} {text.lstrip('# ')}".strip())
            continue
        indent = len(line) - len(text)
        if text.startswith("- ") and indent <= item:
            item = indent
        match = _KEY.fullmatch(line)
        if match is None or indent > item:
            continue
        item, name = MANY, match[1]
        way = [*(outer for outer in way if outer[0] < indent), (indent, name)]
        if way[0][1] in ("sources", "defaults", "hydra"):
            last = ""
            continue
        value, _, comment = f"{match[2] or ''} ".partition("# ")
        last = ".".join(part for _, part in way)
        found[last] = Described(value=value.strip(), meaning=comment.strip())
    return found
