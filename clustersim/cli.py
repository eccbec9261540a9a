"""The command line: which command is meant, and what a user sees of an error. Nothing is imported that help does not need."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = (
    "run", "list", "inspect", "convert", "compare", "disaggregate", "fit", "report", "capture", "validate", "calibrate",
    "completion",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0, 2 for bad input (one line on stderr), 130 when interrupted."""
    gc.set_threshold(100_000, 50, 100)     # nearly all that is made here lives to the end: looking for garbage costs a tenth
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()              # a reader who has gone is noticed here, not when the interpreter ends
        return code
    except KeyboardInterrupt:
        print("interrupted; finished runs are kept", file=sys.stderr)
        return 130
    except BrokenPipeError:             # the reader of a pipe has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError) as error:
        from clustersim.types import InputError

        if not isinstance(error, InputError | OSError):
            raise
        said = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        print(f"clustersim: {said}", file=sys.stderr)
        return 2


def _dispatch(arguments: list[str]) -> int:
    if any(a in ("-h", "--help") for a in arguments):
        from clustersim.commands import usage

        named = next((a for a in arguments if a in COMMANDS), "run")
        print(usage.page() if named == "run" else usage.page_of(named))
        return 0
    if "--version" in arguments:
        from clustersim import __version__

        print(__version__)
        return 0
    first = arguments[0] if arguments else ""
    at = 2 if first == "--config-dir" else 1        # this flag may stand before a command
    if first.startswith("--config-dir") and len(arguments) > at and arguments[at] in COMMANDS:
        return _run(arguments[at], [*arguments[:at], *arguments[at + 1 :]])
    if first in COMMANDS:
        return _run(first, arguments[1:])
    if first and "=" not in first and first[0] not in "-+~":
        from clustersim.pick import did_you_mean
        from clustersim.places import GROUPS
        from clustersim.types import InputError

        if first in GROUPS or "." in first:
            raise InputError(f"{first}: a key needs a value, {first}=VALUE (clustersim --cfg shows all keys and their values)")
        raise InputError(f"{first}: there is no such command{did_you_mean(first, COMMANDS)} (see clustersim --help)")
    return _run("run", arguments)


def _run(command: str, arguments: list[str]) -> int:
    code: int = import_module(f"clustersim.commands.{command}").command(arguments)
    return code


if __name__ == "__main__":
    sys.exit(main())
