"""What a token weighs in each format: numbers, scales, and what a kernel's header adds. Knows no routing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from clustersim.exchange.copies import TokenBytes
from clustersim.pick import did_you_mean
from clustersim.types import InputError

PAYLOADS: dict[str, Callable[[int], float]] = {      # bytes of the activations of one token, scales included, by hidden size
    "fp32": lambda h: 4.0 * h,
    "bf16": lambda h: 2.0 * h,
    "fp16": lambda h: 2.0 * h,
    "fp8": lambda h: 1.0 * h,                                       # one scale for the whole tensor, which does not travel
    "fp8_block128": lambda h: h + 4.0 * math.ceil(h / 128),         # a float32 per 128 (DeepSeek-V3, arXiv 2412.19437 §3.3.2)
    "mxfp8": lambda h: h + 1.0 * math.ceil(h / 32),                 # an E8M0 byte per 32 (OCP Microscaling v1.0)
    "mxfp4": lambda h: h / 2 + math.ceil(h / 32),
    "nvfp4": lambda h: h / 2 + math.ceil(h / 16),                   # an E4M3 byte per 16; the tensor's float32 does not travel
    "logfmt10": lambda h: 10 * h / 8 + 4.0 * math.ceil(h / 128),    # 10 bits, and two BF16 bounds per 128 (DeepEP)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A model with its tokens in chosen formats."""

    top_k: int
    hidden: int
    dispatch_token_bytes: float
    combine_token_bytes: float


def payload_bytes(name: str, hidden: int, key: str = "payload") -> float:
    """Bytes of one token of `hidden` activations, scales included, no header.

    Raises:
        InputError: a format that nothing is known of.
    """
    if name not in PAYLOADS:
        near = did_you_mean(str(name), PAYLOADS)
        raise InputError(f"{key}={name}: there is no data sheet of this format{near} (known: {', '.join(PAYLOADS)})")
    return PAYLOADS[name](hidden)


def loaded(model: TokenBytes, dispatch: str | None, combine: str | None) -> TokenBytes:
    """The model with the formats that an exchange's options name; null leaves the model's own."""
    if dispatch is None and combine is None:
        return model
    hidden = model.hidden
    return Loaded(
        top_k=model.top_k, hidden=hidden,
        dispatch_token_bytes=model.dispatch_token_bytes if dispatch is None
        else payload_bytes(dispatch, hidden, "exchange.dispatch_payload"),
        combine_token_bytes=model.combine_token_bytes if combine is None
        else payload_bytes(combine, hidden, "exchange.combine_payload"),
    )  # fmt: skip
