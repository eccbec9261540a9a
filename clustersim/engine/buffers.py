"""Memory that the kernels of an exchange keep for themselves. Sizes only; what they send is elsewhere."""

from __future__ import annotations

from math import ceil

NVLINK_RECEIVED = ((8, 256), (64, 288), (128, 560))     # up to so many GPUs -> tokens of a channel; beyond: 720
RDMA_RECEIVED = 128
TOP_K, SCALES = 128, 128            # that room is kept for, beside every token
LOW_LATENCY = ("deepep_low_latency", "deepep_low_latency_rdma")
DEEPEP_NORMAL = ("deepep_normal",)


def buffer_bytes(exchange: str, *, gpus: int, experts: int, hidden: int, tokens: int, rows: float, sms: int = 24) -> float:
    """Bytes per GPU that an exchange holds beside what the layer keeps.

    DeepEP's normal kernels hold rings per channel and peer, its low-latency kernels a place for every token that any GPU could
    send to any expert here, twice, so that one layer is sent while another is received. Sizes are the hints of
    github:deepseek-ai/DeepEP csrc/config.hpp, for the rings of deep_ep/buffer.py. Any other exchange holds what it receives
    in a dispatch and what it sends back in a combine, once each.

    Args:
        gpus: that exchange with each other.
        tokens: of a GPU; for low latency the most that any has.
        rows: that arrive at the busiest GPU.
    """
    if exchange in LOW_LATENCY:
        dispatched = 16 + 2 * hidden
        combined = 2 * hidden + hidden // 128 * 4
        sent = max(tokens * dispatched, experts * tokens * combined)
        received = experts * tokens * max(dispatched, combined)
        return 2.0 * (sent + received) + experts * tokens * (hidden + hidden // 128 * 4)    # and what is unpacked, in FP8
    if exchange in DEEPEP_NORMAL:
        channels, peers, nodes = sms // 2, min(gpus, 8), ceil(gpus / 8)
        place = 2 * hidden + TOP_K * (8 + 4) + SCALES * 4
        ring = next((tokens for most, tokens in NVLINK_RECEIVED if gpus <= most), 720)
        far = 2 * channels * nodes * RDMA_RECEIVED * place if nodes > 1 else 0
        return float(channels * peers * ring * place + far)
    return rows * 2 * 2.0 * hidden
