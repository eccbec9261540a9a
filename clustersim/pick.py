"""Turn a name in a config into the function it means. The module is the registry: what it lists in `__all__` is on offer."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, partial
from types import ModuleType
from typing import Any, get_args, get_type_hints

from clustersim.types import InputError

MOST_MEANT = 4          # names that are offered at once


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """'; did you mean X?' for those of `known` that begin so, if they are few, else the nearest, or '' when none is near."""
    known = list(known)
    begun = sorted(one for one in known if one.startswith(name))
    if len(name) > 2 and 1 < len(begun) <= MOST_MEANT:
        return f"; did you mean {', '.join(begun[:-1])} or {begun[-1]}?"
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def offered(module: ModuleType) -> list[str]:
    """The names that can be picked from `module`, sorted."""
    return sorted(module.__all__)


def pick(module: ModuleType, name: str, **options: Any) -> Callable[..., Any]:
    """The function `name` of `module` with `options` bound; `package.module:function` is imported from anywhere.

    Options are the function's keyword-only parameters.

    Raises:
        InputError: no such function, an option that it does not take, or a value of another type than it says.
    """
    kind = module.__name__.rpartition(".")[2]
    return bind(kind, name, find(module, name, kind), options)


def find(module: ModuleType, name: str, key: str) -> Callable[..., Any]:
    """The function `name` of `module`, or a user's `package.module:function`; `key` is what the config calls the choice.

    Raises:
        InputError: no such function.
    """
    home, _, leaf = str(name).rpartition(":")
    own = getattr(module, "__all__", ())
    if not home and leaf not in own:
        kind = "format" if key.endswith("--from") else key.rpartition(".")[2]
        raise InputError(
            f"{key}={name}: there is no such {kind}; it offers {', '.join(sorted(own)) or 'none of its own'} "
            f"(or give package.module:function){did_you_mean(leaf, own)}"
        )
    try:
        function = getattr(importlib.import_module(home) if home else module, leaf)
    except (ImportError, AttributeError) as error:
        raise InputError(f"{key}={name}: {error}") from error
    if not callable(function):
        raise InputError(f"{key}={name}: is no function")
    found: Callable[..., Any] = function
    return found


def bind(kind: str, name: str, function: Callable[..., Any], options: Mapping[str, Any]) -> Callable[..., Any]:
    """`function` with `options`, which are among its keyword-only parameters and of their types. `kind` is their group.

    Raises:
        InputError: an option that it does not take, or a value of another type than it says.
    """
    accepted, hints = _described(function)
    if unknown := sorted(options.keys() - set(accepted)):
        raise InputError(
            f"{kind}.{unknown[0]}: {name} takes {', '.join(accepted) or 'no options'}{did_you_mean(unknown[0], accepted)}"
        )
    for key, value in options.items():
        allowed = get_args(hints[key]) or (hints[key],) if key in hints else ()
        if allowed and _TYPES.keys() >= set(allowed) and not any(_TYPES[one][1](value) for one in allowed):
            raise InputError(f"{kind}.{key}={value}: must be {' or '.join(_TYPES[one][0] for one in allowed)}")
    return partial(function, **options)


def options_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The keyword-only parameters of a function, which are its options, and their defaults (`inspect.Parameter.empty`: none)."""
    parameters = inspect.signature(function).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


@lru_cache(maxsize=256)
def _described(function: Callable[..., Any]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The options that a function takes, and what it says of their types; looked up once, for it takes a millisecond."""
    accepted = tuple(options_of(function))
    try:
        return accepted, get_type_hints(function)
    except (NameError, TypeError):      # a function of the user's, whose annotations are their own business
        return accepted, {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_TYPES: dict[type, tuple[str, Callable[[Any], bool]]] = {        # what an option may be, and how to tell
    int: ("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    float: ("a number", _is_number),
    bool: ("true or false", lambda value: isinstance(value, bool)),
    str: ("text", lambda value: isinstance(value, str)),
    type(None): ("null", lambda value: value is None),
}
