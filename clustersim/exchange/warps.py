"""How long SMs are busy with DeepEP's normal kernels on one node: warps wait for loads, chunks for flags. Moves nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clustersim.exchange.copies import Gpus
from clustersim.gpuspec import GpuSpec
from clustersim.kernels import Kernel, slowness
from clustersim.types import Floats, Ints

NUMBERS = (4.0, 2.0, 1.0, 0.5)      # bytes of one activation in the formats that travel


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Busy:
    """Seconds of the SMs of every GPU, and what comes after."""

    sending: Floats         # [gpus] until the last token of the fullest channel is on its way, or taken in where that is slower
    summing: Floats         # [gpus] of those that sum in a combine; 0 in a dispatch
    after: float            # from the arrival of the last chunk until it is where it belongs


def copying(
    phase: str, token_bytes: float, hidden: int, by_channel: Ints, tokens: Ints, cluster: Gpus, kernel: Kernel
) -> Busy:
    """What a pass takes of its SMs, chunks as long as is best, as DeepEP's own test tunes them.

    The warps of a sending SM are shared out among the GPUs. A warp copies a token in steps of a few rows of 512 bytes: it waits
    for the loads of a step, and all warps of the SM share its port to the L2. Chunk by chunk the head of the queue is read from
    the other GPU and a fence is sent there, and the next chunk begins when both are back. A pass that fits into the L2, as one
    that is repeated in a benchmark finds it there, waits for that and not for memory.

    Args:
        token_bytes: of one token without header: its numbers, and its scales if it has any.
        by_channel: [gpus, channels, gpus] tokens of each GPU and channel that each GPU wants.
        tokens: [gpus] of each.
    """
    channels, sent, taken = by_channel.shape[1], by_channel.max(axis=(1, 2)), by_channel.max(axis=(0, 1))
    touched = token_bytes * (tokens + 2 * by_channel.sum(axis=(0, 1))).max(initial=0)  # read, put into a buffer, and out
    hopper = cluster.gpu.fp4_flops is None              # DeepEP is built for 9.0, with loads that may overtake stores
    warps, peers = round(kernel["warps"]), max(1, round(kernel["warps"]) // cluster.n_gpus)
    memory = kernel["wait"] * slowness(kernel, cluster.gpu)
    near = kernel["l2_answer"] * memory
    wait = near if touched <= kernel["l2" if hopper else "l2_blackwell"] else memory
    numbers = max((size * hidden for size in NUMBERS if size * hidden <= token_bytes), default=token_bytes)
    rows, scales = -(-numbers // kernel["row"]), (token_bytes - numbers) / kernel["scale_row"]
    aside = kernel["scales_aside"] if hopper else 1.0   # loads of scales that are on their way together
    steps = -(-rows // kernel[f"step_{phase}"])
    each = steps * wait + warps * numbers / _port(kernel, cluster.gpu) + np.ceil(np.ceil(scales) / aside) * wait
    if phase == "dispatch":                             # every pair of GPUs has warps of its own at both ends
        pieces = max(2.0, -(-numbers // kernel["piece"]))
        rounds, one = -(-sent // peers), (kernel["taking"] * pieces + scales / aside) * wait
        summing = np.zeros(sent.size)
    else:                                               # all warps but the one that keeps the heads sum, token by token
        rounds, one = -(-taken // peers), rows * near
        summing = -(-tokens // (channels * (warps - 1))) * one
    best: Busy | None = None
    for length in range(1, max(1, round(kernel[f"chunk_{phase}"]) // peers) + 1):       # rounds of a chunk
        chunks = -(-rounds // length)
        sending = rounds * each + np.maximum(0, chunks - 1) * kernel["trips"] * kernel["flag"]
        if phase == "dispatch":
            sending = np.maximum(sending, rounds * one + chunks * kernel["polls"] * wait)
        last = min(length, int(rounds.max(initial=0))) if phase == "dispatch" else 1
        now = Busy(sending=sending, summing=summing, after=last * one)
        if best is None or _whole(now) <= _whole(best):
            best = now
    assert best is not None
    return best


def _whole(busy: Busy) -> float:
    return float(max(busy.sending.max(initial=0.0), busy.summing.max(initial=0.0)) + busy.after)


def _port(kernel: Kernel, gpu: GpuSpec) -> float:
    """Bytes/s that one SM gets from the L2; those of the GPU that the constants were found on, where a topology has none."""
    return gpu.l2_bandwidth / gpu.sms if gpu.l2_bandwidth is not None and gpu.sms is not None else kernel["l2_port"]
