"""`clustersim convert`: a trace or a model from what others wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clustersim.commands.arguments import plain_value
from clustersim.types import InputError


def command(arguments: list[str]) -> int:
    if "hf-config" in arguments:
        return _convert_model(arguments)
    from clustersim import importers
    from clustersim.pick import bind, find

    if not arguments:
        print("  hf-config              A model, for model=FILE, from the configuration of a Hugging Face checkpoint.")
        for name in sorted(importers.__all__):
            print(f"  {name:<22} {(getattr(importers, name).__doc__ or '').strip().splitlines()[0]}")
        return 0
    paths: list[Path] = []
    given: dict[str, Any] = {}
    named = {"--from": "", "-o": ""}
    rest = iter(arguments)
    for text in rest:
        if text in named:
            named[text] = next(rest, "") or ""
            if not named[text]:
                raise InputError(f"convert {text}: needs a {'format' if text == '--from' else 'folder'}")
        elif text.startswith("-"):
            raise InputError(f"convert {text}: there is no such flag (--from FORMAT, -o DIR, KEY=VALUE)")
        elif "=" in text and not Path(text).exists():
            key, _, value = text.partition("=")
            given[key] = plain_value(value)
        else:
            paths.append(Path(text))
    if len(paths) != 1 or not named["-o"]:
        raise InputError(f"{' '.join(['convert', *arguments])}: takes one file or folder, and -o DIR")
    if not paths[0].exists():
        raise InputError(f"{paths[0]}: no such file or folder")
    from clustersim.importers.recognition import detect
    from clustersim.importers.storing import store
    from clustersim.writing import check_writable

    target = Path(named["-o"])
    if target.exists() and (target.samefile(paths[0]) or target in paths[0].parents):
        raise InputError(f"convert -o {target}: holds what is to be converted; give another folder")
    check_writable(target, f"convert -o {target}")
    form = named["--from"] or detect(paths[0])
    if form is None:
        raise InputError(f"{paths[0]}: no format is recognised; say --from FORMAT (clustersim convert lists them)")
    made = bind("convert", form, find(importers, form, "convert --from"), given)(paths[0])
    facts, notes, faults = store(made, target, f"{form} {paths[0].name}")
    print(f"{facts} from {form} in {named['-o']}")
    for note in notes:
        print(f"note: {note}")
    for fault in faults:
        print(f"suspicious: {fault}")
    return 0


def _convert_model(arguments: list[str]) -> int:
    """A model for `model=FILE` from the configuration of a Hugging Face checkpoint; without -o it is printed."""
    from clustersim.hf_config import converted
    from clustersim.writing import check_writable, replacing

    rest = [a for a in arguments if a not in ("--from", "hf-config")]
    out = rest.pop(rest.index("-o") + 1) if "-o" in rest[:-1] else None
    rest = [a for a in rest if a != "-o"]
    if len(rest) != 1:
        raise InputError(f"{' '.join(['convert', *arguments])}: takes one CONFIG.json, and -o MODEL.yaml")
    told, text = converted(Path(rest[0]))
    if out is None:
        print(text, end="")
    else:
        check_writable(Path(out), f"convert -o {out}")
        with replacing(Path(out)) as temporary:
            temporary.write_text(text, encoding="utf-8")
        print(f"{told}, in {out}")
    return 0
