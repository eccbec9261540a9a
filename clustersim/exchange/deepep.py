"""DeepEP's exchanges: normal kernels (dedup per node, forwarding, partial sums) and low latency (one put per selection)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from clustersim.exchange.copies import Gpus, TokenBytes, channel_copies, choice_copies, token_bytes
from clustersim.exchange.hierarchical import copy_bytes_of, forwarders_of, two_hops
from clustersim.exchange.payloads import loaded
from clustersim.exchange.warps import Busy, copying
from clustersim.kernels import Kernel, launched, load_kernel, slowness
from clustersim.lanes import lanes_from
from clustersim.types import Floats, InputError, Ints, Lanes, Placement, Routing, Transfers, independent

SENDING, FORWARDING = 0, 1      # lanes of the normal kernels: the even and the odd SMs
ISSUING, PUTTING = 0, 1          # lanes of the low-latency kernels: RDMA messages; what a combine stores over NVLink


def deepep_normal(
    phase: str, routing: Routing, placement: Placement, cluster: Gpus, model: TokenBytes,
    *, kernel: str = "deepep_v1", sms: int = 24, notify: bool = True, chunk_tokens: int = 16,
    dispatch_payload: str | None = None, combine_payload: str | None = None,
) -> Transfers:
    """`node_dedup` as DeepEP's normal kernels run it: copied by SMs, in as many channels as there are pairs of SMs.

    Half of the SMs send (and, with several nodes, take in what is forwarded), the other half forward (on one node: take in).
    In a combine the forwarders read every partial result and write their sums, and the GPU at home reads those. Copies to
    the own GPU and node pass through the SMs too; no wire sees them. Each channel moves `chunk_tokens` at a time over the
    NIC, so what moves as one piece is that times the channels. Source: DeepEP dd758caf, csrc/kernels/legacy.

    Args:
        phase: "dispatch" or "combine".
        kernel: constants in conf/kernel, or a YAML file.
        sms: streaming multiprocessors that it takes; even.
        notify: whether the round of counts before a dispatch is part of it.
        dispatch_payload, combine_payload: formats of `payloads`; None: the model's.

    Raises:
        InputError: sms that are odd or below 2, an unknown format.
    """
    if sms < 2 or sms % 2:
        raise InputError(f"exchange.sms={sms}: a channel has two SMs, so it must be even and at least 2")
    constants, model = load_kernel(kernel), loaded(model, dispatch_payload, combine_payload)
    copy_bytes = copy_bytes_of(phase, model, None)
    by_channel, to_node = channel_copies(routing, placement, cluster, sms // 2)
    to_gpu, tokens = by_channel.sum(axis=1), np.bincount(routing.source, minlength=cluster.n_gpus)
    plain = two_hops(phase, to_gpu, to_node, cluster, copy_bytes, chunk_tokens)
    phases = 1 if phase == "dispatch" else 2        # a combine first sends, then reduces
    start = phases * launched(constants, cluster.gpu) + (constants["notify"] if notify and phase == "dispatch" else 0.0)
    token = token_bytes(phase, model)
    busy = None
    if cluster.n_nodes == 1:
        busy = copying(phase, token, model.hidden, by_channel, tokens, cluster, constants)
        start += busy.after
    return replace(
        plain, release=np.full(plain.n, start),
        lanes=_copying(phase, plain, by_channel, to_node, tokens, cluster, copy_bytes, constants, busy),
        messages=np.ceil(plain.nbytes / (copy_bytes * chunk_tokens)),
        logical_bytes=float((to_node if cluster.n_nodes > 1 else to_gpu).sum() * token),
    )  # fmt: skip


def _copying(
    phase: str, t: Transfers, by_channel: Ints, to_node: Ints, tokens: Ints, cluster: Gpus, copy_bytes: float, kernel: Kernel,
    busy: Busy | None,
) -> Lanes:
    """What transfers take of the SMs.

    On one node what `warps` makes of it. On several the warps of an SM are shared out among the GPUs (or nodes) at the other
    end, so an exchange lasts as long as its largest share; loads are that share times their number. A lane is taken by one
    kind of hop only, the first that its SMs see: what they do for the other hop, and copies that never leave a GPU, come on
    top, as coupled hops pass at one pace.
    """
    n, channels = cluster.n_gpus, by_channel.shape[1]
    loads: tuple[Floats, Floats]
    if busy is not None:
        rate = channels * kernel["sm_rate"] / copy_bytes        # copies per second, in which a lane's capacity is counted
        loads = (busy.sending * rate, busy.summing * rate)
        users = (t.src, t.dst if phase == "combine" else np.full(t.n, -1))
    else:
        nodes, each = cluster.n_nodes, cluster.gpus_per_node
        grid = by_channel.reshape(nodes, each, channels, nodes, each)       # [node, local of source, channel, node, local]
        through = grid.sum(axis=0)                                          # [local, channel, node, local]: by each forwarder
        over_nic = cluster.node_of[t.src] != cluster.node_of[t.dst]
        at_expert = through.max(axis=(0, 1)).ravel() * channels * each      # the largest share of what reaches each GPU
        if phase == "dispatch":
            passed = through.max(axis=(1, 3)).T.ravel() * channels * each   # and of what each forwarder passes on
            loads = (tokens + to_node.sum(axis=1) + at_expert, passed)     # read once, written to every node, taken in
            users = (np.where(over_nic, t.src, -1), np.where(over_nic, -1, t.src))
        else:
            read = grid.sum(axis=4).max(axis=(0, 2)).T.ravel() * channels * nodes
            written = np.bincount(forwarders_of(cluster).ravel(), to_node.ravel(), n)
            loads = (at_expert, read + written + to_node.sum(axis=1) + tokens)
            users = (np.where(over_nic, -1, t.src), np.where(over_nic, -1, t.dst))
    uses = []
    for kind, (load, gpu) in enumerate(zip(loads, users, strict=True)):
        moved = np.bincount(gpu[gpu >= 0], t.nbytes[gpu >= 0], n)
        weight = np.divide(load * copy_bytes, moved, out=np.zeros(n), where=moved > 0)
        uses.append((kind, gpu, np.append(weight, 0.0)[gpu]))
    return lanes_from(*uses, n_gpus=n)


def deepep_low_latency(
    phase: str, routing: Routing, placement: Placement, cluster: Gpus, model: TokenBytes,
    *, kernel: str = "deepep_low_latency", dispatch_payload: str | None = None, combine_payload: str | None = None,
) -> Transfers:
    """One put per token and selected expert, straight into the expert's buffer: over NVLink inside the node, else by RDMA.

    Nothing is joined: two experts on one GPU get a token twice, and the token's GPU sums what comes back. A dispatched
    message carries 16 bytes before the token. Beside the tokens every GPU tells every expert of another GPU how many
    messages it sent (and is told, in a combine, that an expert is through); those by RDMA are issued one after the other.
    Source: DeepEP dd758caf, csrc/kernels/legacy/internode_ll.cu.
    """
    return _puts(phase, routing, placement, cluster, loaded(model, dispatch_payload, combine_payload), kernel, rdma=False)


def deepep_low_latency_rdma(
    phase: str, routing: Routing, placement: Placement, cluster: Gpus, model: TokenBytes,
    *, kernel: str = "deepep_low_latency", dispatch_payload: str | None = None, combine_payload: str | None = None,
) -> Transfers:
    """As `deepep_low_latency`, but by RDMA to every other GPU, those of the own node too; as DeepEP's first release."""
    return _puts(phase, routing, placement, cluster, loaded(model, dispatch_payload, combine_payload), kernel, rdma=True)


def _puts(
    phase: str, routing: Routing, placement: Placement, cluster: Gpus, model: TokenBytes, kernel: str, *, rdma: bool
) -> Transfers:
    constants, n = load_kernel(kernel), cluster.n_gpus
    copies = choice_copies(routing, placement, cluster)
    token = token_bytes(phase, model)
    message = token + 16 if phase == "dispatch" else token
    logical = float(copies.sum() * token)
    own = np.diag(copies).copy()
    np.fill_diagonal(copies, 0)
    home, away = np.nonzero(copies)
    count = copies[home, away].astype(np.float64)
    src, dst = (home, away) if phase == "dispatch" else (away, home)
    by_rdma = np.ones((n, n), bool) if rdma else cluster.node_of[:, None] != cluster.node_of[None, :]
    np.fill_diagonal(by_rdma, False)
    experts = np.bincount(placement.gpu_of, minlength=n)
    told = by_rdma @ experts if phase == "dispatch" else experts * by_rdma.sum(axis=1)      # counts or flags of each GPU
    slower = slowness(constants, cluster.gpu)
    round_s, first = slower * constants["round"], slower * constants["launch"]
    nic = by_rdma[src, dst]
    taken = np.bincount(dst[~nic], count[~nic], n) + own                # messages that a GPU takes out of its buffer
    copied_out = 2 * taken * token / (constants["copy_share"] * cluster.gpu.memory_bandwidth)
    begins = np.where(nic | (phase == "dispatch"), round_s, first)
    begins += np.where(nic, constants["message"] * told[src], copied_out[dst])
    plain = independent(src, dst, count * message)
    putting = ~nic & (phase == "combine")
    return replace(
        plain, release=begins, by_nic=nic if rdma else None, messages=count, logical_bytes=logical, least=np.full(n, round_s),
        lanes=lanes_from(
            (ISSUING, np.where(nic, src, -1), np.full(plain.n, 1 / message)),
            (PUTTING, np.where(putting, src, -1), np.ones(plain.n)), n_gpus=n,
        ),
    )  # fmt: skip
