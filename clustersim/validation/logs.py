"""What benchmarks print, as rows: nccl-tests, DeepEP's tests, nvbandwidth. One parser each, found by name. Fits nothing.

A parser is `name(text, given) -> list[Row]`: [] where the text is not its benchmark's. `given` says what the log does not
(gpu, gpus, gpus_per_node, experts, nic); it is complete when a case needs it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clustersim.types import InputError
from clustersim.validation.rows import Row

__all__ = ["deepep", "nccl_tests", "nvbandwidth"]

GPUS = {"H100": "h100_sxm", "H200": "h200_sxm", "H800": "h800_sxm", "A100": "a100_sxm", "GB300": "gb300", "GB200": "gb200",
        "B300": "b300", "B200": "b200"}  # fmt: skip

_FLOAT = r"[\d.]+(?:e[+-]?\d+)?"            # nccl-tests print 1.2e+07 where seven characters are too few
_NCCL_LINE = re.compile(rf"^\s*(\d+)\s+(\d+)\s+(\w+)\s+\S+\s+-?\d+\s+({_FLOAT})\s+{_FLOAT}\s+{_FLOAT}\s+\S+", re.MULTILINE)
_NCCL_RANK = re.compile(r"^#\s+Rank\s+(\d+).*?\]\s+(.*)$", re.MULTILINE)
_CONFIG = re.compile(r"num_tokens=(\d+),\s*hidden=(\d+),\s*num_topk=(\d+)")
_NORMAL = re.compile(r"Best (dispatch|combine)(?: \((\w+)\))?: SMs (\d+),(.*)", re.IGNORECASE)
_TIMES = re.compile(r"(?:avg_t|\bt|transmit): ([\d.]+) us|[\d.]+ \+ ([\d.]+) us")      # between nodes: notify + transmission
_RATES = re.compile(r"([\d.]+) GB/s \((RDMA|NVL)\)")
_LOW = re.compile(
    r"\[rank (\d+)\] Dispatch bandwidth: [\d.]+ GB/s, avg_t=([\d.]+) us \| Combine bandwidth: [\d.]+ GB/s, avg_t=([\d.]+) us"
)
_D2D = re.compile(r"^SUM (device_to_device\w*_ce(?:_total)?) ([\d.]+)", re.MULTILINE)


def read_log(path: Path, given: Mapping[str, Any]) -> list[Row]:
    """The rows of one log, by whichever parser knows it.

    Raises:
        InputError: no such file, or a text that no parser knows.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"calibrate {path}: cannot be read ({error.strerror})") from error
    for name in __all__:
        rows: list[Row] = globals()[name](text, {**given, "file": path.name})
        if rows:
            return rows
    raise InputError(f"calibrate {path}: is no output of {', '.join(__all__)} that has a measurement in it")


def nccl_tests(text: str, given: Mapping[str, Any]) -> list[Row]:
    """alltoall_perf: its out-of-place times by size; ranks and GPU from the header.

    Layout: NVIDIA/nccl-tests @0fdb00a, src/util.cu.
    """
    if "out-of-place" not in text or (lines := _NCCL_LINE.findall(text)) == []:
        return []
    ranks = _NCCL_RANK.findall(text)
    gpu = given.get("gpu") or next((case for word, case in GPUS.items() if ranks and word in ranks[0][1]), None)
    gpus = len(ranks) or _asked(given, "gpus")
    if gpu is None:
        raise InputError(f"calibrate {given['file']}: does not name its GPU; say gpu=h100_sxm")
    case = {
        "what": "exchange", "exchange": "nccl_alltoall", "gpu": gpu, "gpus": gpus, "metric": "seconds, out of place",
        **{key: given[key] for key in ("gpus_per_node", "nic") if given.get(key) is not None},
    }  # fmt: skip
    return [
        _row(given, f"{size} B", float(time) * 1e-6, {**case, "bytes_per_gpu": int(size)})
        for size, _, _, time in lines if int(size) > 0 and float(time) > 0
    ]  # fmt: skip


def deepep(text: str, given: Mapping[str, Any]) -> list[Row]:
    """test_intranode, test_internode, test_low_latency: the best of each tuning, or every rank's average.

    Layout: deepseek-ai/DeepEP, tests/ @031a5c4 (rates alone) and after (with a time, "notify + transmission" between nodes),
    and ai-dynamo/aiconfigurator @901d068, collector/deep_collector ("transmit: ... us, notify: ... us").
    """
    normal, low = _NORMAL.findall(text), _LOW.findall(text)
    if not normal and not low:
        return []
    found = _CONFIG.search(text)
    tokens, hidden, top_k = (int(part) for part in found.groups()) if found else (
        _asked(given, "tokens_per_gpu"), given.get("hidden", 7168), given.get("top_k", 8),
    )  # fmt: skip
    gpus = _asked(given, "gpus")
    per_node = given.get("gpus_per_node", 8)
    nodes = max(1, gpus // per_node)
    case = {
        "what": "exchange", "gpu": _asked(given, "gpu"), "gpus": gpus, "gpus_per_node": per_node, "nic": given.get("nic"),
        "tokens_per_gpu": tokens, "hidden": hidden, "top_k": top_k, "experts": given.get("experts", 256),
    }  # fmt: skip
    if low:
        rows = []
        for i, phase in enumerate(("dispatch", "combine")):
            mean = sum(float(one[1 + i]) for one in low) / len(low)
            rows.append(_row(given, f"low latency {phase}", mean * 1e-6, {
                **case, "exchange": "deepep_low_latency", "phase": phase, "routing": "uniform", "metric": "seconds",
                "payload": "fp8_block128" if phase == "dispatch" else "bf16",
            }))  # fmt: skip
        return rows
    words = f"uniform scores, best {min(nodes, 4)} of {nodes} nodes by maximum"
    rows = []
    for phase, kind, sms, rest in normal:
        name, value, metric = _normal_value(given, rest, "RDMA" if nodes > 1 else "NVL")
        rows.append(_row(given, f"{phase} {kind or 'BF16'} {sms} SMs{name}", value, {
            **case, "exchange": "deepep_normal", "phase": phase.lower(), "routing": words, "sms": int(sms),
            "payload": "fp8_block128" if kind.upper() == "FP8" else "bf16", "metric": metric,
        }))  # fmt: skip
    return rows


def _normal_value(given: Mapping[str, Any], rest: str, link: str) -> tuple[str, float, str]:
    """Seconds where the line has them; the first releases print the rate of the slower link alone, payload of every copy."""
    if found := _TIMES.search(rest):
        return "", float(found[1] or found[2]) * 1e-6, "seconds of transmission, notify apart"
    rates = {kind: float(rate) for rate, kind in _RATES.findall(rest)}
    if link not in rates:
        raise InputError(f"calibrate {given['file']}: has neither a time nor GB/s ({link}) for its best, but{rest}")
    return f", {link}", rates[link] * 1e9, "bytes/s of payload, notify apart"


def nvbandwidth(text: str, given: Mapping[str, Any]) -> list[Row]:
    """Device-to-device copies: bytes/s of a pair of GPUs each way, from the sum of the matrix of all pairs.

    Layout: NVIDIA/nvbandwidth @08eda47 (output.cpp, README.md). Both ways at once come as read1, read2 and their total.
    """
    rows = []
    for name, total in _D2D.findall(text):
        body = text[: text.index(f"SUM {name}")]
        table = body[body.rfind("memcpy") :]
        cells = [float(word) for line in table.splitlines() for word in line.split()[1:] if re.fullmatch(r"\d+\.\d+", word)]
        if cells:
            both = 2.0 if name.endswith("_total") else 1.0        # without, the measured direction of two
            rows.append(_row(given, name, float(total) / len(cells) / both * 1e9, {"what": "link", "of": "nvlink"}))
    return rows


def _row(given: Mapping[str, Any], name: str, value: float, case: dict[str, Any]) -> Row:
    rate = case["what"] == "link" or str(case.get("metric", "")).startswith("bytes/s")
    unit, scale = ("GB/s", 1e9) if rate else ("us", 1e-6)
    return Row(
        id=f"{given['file']}: {name}", group="yours", system="yours", value=value, scale=scale, unit=unit, case=case,
        source=str(given["file"]),
    )  # fmt: skip


def _asked(given: Mapping[str, Any], key: str) -> Any:
    if given.get(key) is None:
        raise InputError(f"calibrate {given['file']}: the log does not say {key}; add {key}=...")
    return given[key]
