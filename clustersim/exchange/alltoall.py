"""Exchanges in one hop, straight from the token's GPU to the expert's. No clock, no links."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from clustersim.exchange.copies import Gpus, TokenBytes, choice_copies, token_bytes
from clustersim.types import Placement, Routing, Transfers, independent


def direct(phase: str, routing: Routing, placement: Placement, cluster: Gpus, model: TokenBytes) -> Transfers:
    """One copy per token and kept expert, and nothing but the token in it.

    The all-to-all of Megatron-LM, FastMoE and Hugging Face: two experts on one GPU get the token twice, and return it
    twice, un-summed. Choices whose expert lives on the token's own GPU do not travel. Rows of padding travel like tokens, both
    ways: with every buffer filled up to the capacity C, slots · C rows leave a GPU whatever the routing.

    Args:
        phase: "dispatch" or "combine"; combine is the transpose, in the model's combine bytes.

    Returns:
        One transfer per pair of GPUs with something to send, by source of the token, then expert GPU.
    """
    copies = choice_copies(routing, placement, cluster)
    token = token_bytes(phase, model)
    logical = float(copies.sum() * token)
    if routing.padding is not None:
        np.add.at(copies.T, placement.gpu_of, routing.padding.T)
    if not routing.asked.size:                          # of counts alone these rows are all that is known of tokens
        logical = float(copies.sum() * token)
    np.fill_diagonal(copies, 0)
    home, away = np.nonzero(copies)
    n_copies = copies[home, away].astype(np.float64)
    src, dst = (home, away) if phase == "dispatch" else (away, home)
    return replace(independent(src, dst, n_copies * token), logical_bytes=logical)
