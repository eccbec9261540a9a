"""Numbers and links as a reader of a report sees them: a dash for what is not known, never a NaN."""

from __future__ import annotations

import math
from typing import Any

from clustersim.units import format_bytes, format_seconds

NONE = "–"
_FIRM = "\N{NO-BREAK SPACE}"  # between a number and its unit
_PORTS = {
    "nvlink_up": "NVLink out of GPU {}", "nvlink_down": "NVLink into GPU {}", "nic_up": "the NIC of GPU {}, outbound",
    "nic_down": "the NIC of GPU {}, inbound", "pcie_up": "PCIe out of GPU {}", "pcie_down": "PCIe into GPU {}",
}  # fmt: skip
_TIERS = {
    "leaf_up": "a link from leaf to spine", "leaf_down": "a link from spine to leaf", "spine_up": "a link from spine to core",
    "spine_down": "a link from core to spine", "local": "a link inside a group", "global": "a link between groups",
}  # fmt: skip

_CLASSES = {
    "nvlink": "an NVLink port", "nic": "a NIC", "pcie": "a PCIe link", "leaf": "a link between leaf and spine",
    "spine": "a link between spine and core", "local": "a link inside a group", "global": "a link between groups",
}  # fmt: skip


def known(value: Any) -> bool:
    """Whether there is a number to show."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def seconds(value: Any) -> str:
    """`12.3 µs`."""
    return _firm(format_seconds(value).replace("us", "µs")) if known(value) else NONE


def nbytes(value: Any) -> str:
    """`17.3 GB`."""
    return _firm(format_bytes(value)) if known(value) else NONE


def percent(share: Any, digits: int = 1) -> str:
    """`76.0 %` of a share; less than can be shown, but not nothing, is `< 0.1 %`."""
    if not known(share):
        return NONE
    least = 10.0**-digits
    if 0 < abs(share) * 100 < least / 2:
        return _firm(f"< {least:g} %")
    return _firm(f"{100 * share:.{digits}f} %")


def number(value: Any, digits: int = 0) -> str:
    """`2,532,703` or `1.63`."""
    return _firm(f"{value:,.{digits}f}") if known(value) else NONE


def times(ratio: Any) -> str:
    """`1.25 ×`."""
    return _firm(f"{ratio:.2f} ×") if known(ratio) else NONE


def _firm(text: str) -> str:
    """The text with spaces that do not break and a minus that is one."""
    return text.replace(" ", _FIRM).replace("-", "\N{MINUS SIGN}")


def in_words(link: str) -> str:
    """What a link's name (`nic_down 42`) says, in words."""
    kind, _, which = link.partition(" ")
    if kind in _PORTS and which.isdecimal():
        return _PORTS[kind].format(which)
    return _TIERS.get(kind, f"the link {link}")


def class_in_words(name: str) -> str:
    """What a class of links (`nic`) is, in words."""
    return _CLASSES.get(name, f"a link of class {name}")
