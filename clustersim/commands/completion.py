"""`clustersim completion SHELL`: what a shell needs to complete commands, options and keys. It reads configs, and composes none.

The scripts ask `clustersim completion words LINE`, LINE being what stands before the cursor. Hydra's own completion would
import it and compose, for half a second at every touch of the key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from clustersim.places import ADDED, PACKAGE, groups, option_files

SCRIPTS = {
    "bash": """\
# source <(clustersim completion bash)
_clustersim() {
    local line="${COMP_LINE:0:COMP_POINT}" IFS=$'\\n'
    local word="${line##* }"
    COMPREPLY=($("$1" completion words "$line" 2>/dev/null))
    if [[ $word == *[=:]* && $COMP_WORDBREAKS == *=* ]]; then      # bash wants what follows the last of them
        local head="${word%"${word##*[=:]}"}"
        COMPREPLY=("${COMPREPLY[@]#"$head"}")
    fi
    [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *[=.] ]] && compopt -o nospace 2>/dev/null
    return 0
}
complete -o default -F _clustersim clustersim
""",
    "zsh": """\
# source <(clustersim completion zsh), after compinit
_clustersim() {
    local -a found
    found=("${(@f)$($words[1] completion words "${(j: :)${(@)words[1,CURRENT-1]}} $PREFIX" 2>/dev/null)}")
    found=(${found:#})
    if (( ! $#found )); then _files; return; fi
    compadd -S '' -- ${(M)found:#*[=.]}
    compadd -- ${found:#*[=.]}
}
compdef _clustersim clustersim
""",
    "fish": """\
# clustersim completion fish | source
function __clustersim
    set -l found (clustersim completion words (commandline -cp | string collect) 2>/dev/null)
    if test (count $found) -gt 0
        printf '%s\\n' $found
    else
        __fish_complete_path (commandline -ct)
    end
end
complete -c clustersim -f -a '(__clustersim)'
""",
}
FLAGS = {                       # command -> what may follow it, besides files
    "run": ("-m", "--cfg", "--json", "--config-dir", "--help", "--version"),
    "list": ("--json", "--config-dir"), "inspect": ("--plot", "--check", "-o", "--config-dir"), "compare": ("--json",),
    "disaggregate": ("--json",),
    "convert": ("--from", "-o"), "fit": ("--score", "-o"), "report": ("--all", "--svg", "--pdf", "-o"), "capture": ("--text",),
    "validate": ("--rows", "--json", "--plot", "--leave-out", "--refit", "-o"), "calibrate": ("-o",), "completion": (),
}  # fmt: skip


def command(arguments: list[str]) -> int:
    if len(arguments) == 2 and arguments[0] == "words":
        for text in words_for(arguments[1]):
            print(text)
        return 0
    if len(arguments) != 1 or arguments[0] not in SCRIPTS:
        from clustersim.types import InputError

        raise InputError(f"{' '.join(['completion', *arguments])}: takes one of {', '.join(SCRIPTS)}")
    print(SCRIPTS[arguments[0]], end="")
    return 0


def words_for(line: str) -> list[str]:
    """What the last word of a line may become; the line begins with the program and ends at the cursor."""
    typed = [*line.split(), *[""] * line[-1:].isspace()][1:]
    before, word = typed[:-1], "".join(typed[-1:])
    own = _own(before)
    first = next((text for text in before if text in FLAGS), "run")
    if word.startswith("-"):
        found: list[str] = [*FLAGS[first]]
    elif before and before[-1] in ("--config-dir", "-o", "--from", "--text"):
        return []                       # a file or a folder, which the shell knows
    elif first == "run":
        found = [*_overrides(before, word, own), *(() if before else (name for name in FLAGS if name != "run"))]
    else:
        found = _subjects(first, word, own)
    return [text for text in found if text.startswith(word)]


def _own(before: list[str]) -> Path | None:
    """The folder that `--config-dir` names."""
    for flag, text in zip(before, [*before, ""][1:], strict=True):
        name = text if flag == "--config-dir" else flag.partition("=")[2] if flag.startswith("--config-dir=") else ""
        if name and Path(name).expanduser().is_dir():
            return Path(name).expanduser()
    return None


def _subjects(command: str, word: str, own: Path | None) -> list[str]:
    """What a command is about, where that has a name."""
    if command == "list" and "=" in word:
        group = word.partition("=")[0]
        return [f"{group}={option}" for option in option_files(group, own)] if group in groups(own) else []
    if command == "inspect":
        return [*option_files("topology", own), *option_files("model", own)]
    return {"list": [*groups(own)], "capture": ["tiny", "hf"], "completion": [*SCRIPTS]}.get(command, [])


def _overrides(before: list[str], word: str, own: Path | None) -> Iterator[str]:
    """Overrides that begin with a word, as far as they are decided by it."""
    key, equals, value = word.partition("=")
    name = key.lstrip("+")
    if equals and name in groups(own):
        head = value.rpartition(",")[0]         # of a list of options, those that stand already
        taken = head.split(",")
        yield from (f"{key}={head}{',' * bool(head)}{option}" for option in option_files(name, own) if option not in taken)
    elif equals:
        yield from (f"{key}={value}" for value in ("true", "false") if isinstance(_defaults(name, before, own).get(name), bool))
    elif "." in word:
        yield from (f"{key[: len(key) - len(name)]}{known}=" for known in _defaults(name, before, own) if known.startswith(name))
    else:
        for group in groups(own):
            without_default = group in ADDED or option_files(group) == {}
            yield f"{'+' * without_default}{group}="
            if not without_default:
                yield f"{group}."
        yield from (f"{known}=" for known in _defaults("", before, own) if "." not in known)


def _defaults(key: str, before: list[str], own: Path | None) -> dict[str, Any]:
    """The keys beside this one and what they are before any is set: of the option that a group has been given, or of no group."""
    main = _yaml(PACKAGE / "conf" / "config.yaml")
    group, dot, _ = key.partition(".")
    if dot and group in groups(own):
        chosen = {name: option for entry in main["defaults"] if isinstance(entry, dict) for name, option in entry.items()}
        chosen |= {name: value.partition(",")[0] for name, _, value in (text.partition("=") for text in before)}
        file = option_files(group, own).get(chosen.get(group, ""))
        return dict(_leaves(_yaml(file), f"{group}.")) if file is not None else {}
    return dict(_leaves({name: value for name, value in main.items() if name != "defaults"}, ""))


def _leaves(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and key != "sources":
            yield from _leaves(value, f"{prefix}{key}.")
        elif key != "sources":
            yield f"{prefix}{key}", value


def _yaml(file: Path) -> dict[str, Any]:
    import yaml

    values = yaml.load(file.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return values if isinstance(values, dict) else {}
