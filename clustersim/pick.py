"""Turn a name in a config into the function it means. The module is the registry: what it lists in `__all__` is on offer."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable
from functools import partial
from types import ModuleType
from typing import Any

from clustersim.types import InputError


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """'; did you mean X?' for the nearest of `known`, or '' when none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def offered(module: ModuleType) -> list[str]:
    """The names that can be picked from `module`, sorted."""
    return sorted(module.__all__)


def pick(module: ModuleType, name: str, **options: Any) -> Callable[..., Any]:
    """The function `name` of `module` with `options` bound; `package.module:function` is imported from anywhere.

    Options are the function's keyword-only parameters.

    Raises:
        InputError: no such function, or an option that it does not take.
    """
    home, _, leaf = name.rpartition(":")
    kind = module.__name__.rpartition(".")[2]
    if not home and leaf not in module.__all__:
        raise InputError(
            f"{kind}={name}: there is no such {kind}; it offers {', '.join(offered(module))} "
            f"(or give package.module:function){did_you_mean(name, module.__all__)}"
        )
    try:
        function = getattr(importlib.import_module(home) if home else module, leaf)
    except (ImportError, AttributeError) as error:
        raise InputError(f"{kind}={name}: {error}") from error
    accepted = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    if unknown := sorted(options.keys() - set(accepted)):
        raise InputError(
            f"{kind}.{unknown[0]}: {name} takes {', '.join(accepted) or 'no options'}{did_you_mean(unknown[0], accepted)}"
        )
    return partial(function, **options)
