"""Token-layers per second from tokens to transfers, at 2,048 ranks: `python -m tests.bench.exchanges`."""

import time
from types import SimpleNamespace

import numpy as np

from clustersim import exchange
from clustersim.types import Placement, Routing
from clustersim.validation.draws import uniform

N, TOKENS, K = 2048, 4096, 8


def main() -> None:
    source, index = np.repeat(np.arange(N), TOKENS), np.tile(np.arange(TOKENS), N)
    experts = uniform(np.random.default_rng(0), N * TOKENS, 256, K)
    ids = experts * 8 + (source % 8)[:, None]       # 8 replicas each, chosen by source
    cluster = SimpleNamespace(n_gpus=N, n_nodes=N // 8, gpus_per_node=8, node_of=np.arange(N) // 8, local_of=np.arange(N) % 8)
    routing = Routing(asked=ids, assigned=ids, weights=None, source=source, index=index, capacity=None)
    placement = Placement(gpu_of=np.arange(N), expert_of=np.arange(N))
    model = SimpleNamespace(top_k=K, hidden=7168, dispatch_token_bytes=7392.0, combine_token_bytes=14336.0)
    for name in ("direct", "rank_dedup", "node_dedup"):
        best = np.inf
        for _ in range(6):
            began = time.process_time()
            getattr(exchange, name)("dispatch", routing, placement, cluster, model)
            best = min(best, time.process_time() - began)
        print(f"{name:<12} {N * TOKENS / best / 1e6:6.1f} M token-layers/s")


if __name__ == "__main__":
    main()
