"""How much work a training step is, counted: nothing is drawn, routed, counted or played twice. Seconds are the benchmark's."""

from collections import Counter

import pytest

from clustersim.config import compose
from clustersim.exchange import copies_kernel
from clustersim.training import blocks
from clustersim.training.step import train
from clustersim.workload.routers import kernels
from clustersim.workload.sampler_process import Process
from tests.reports import TRAINED

LAYERS, MOE_LAYERS, GPUS, TOKENS = 5, 2, 2, 256
DEEPSEEK = [
    *(text for text in TRAINED if "n_layers" not in text), "model=deepseek_v3", f"model.n_layers={LAYERS}", "memory=ignore",
    "trace=sampled", "router=model", "exchange=deepep_normal", "exchange.sms=20", "parallel.order=dualpipe",
]  # fmt: skip


@pytest.fixture(scope="module")
def done():
    """(what was called how often, the step): sums of tokens for what takes several at a time."""
    counts = Counter()

    def counted(where, name, size):
        function = getattr(where, name)

        def called(*given, **more):
            counts[name] += size(*given)
            return function(*given, **more)

        patch.setattr(where, name, called)

    with pytest.MonkeyPatch.context() as patch:
        counted(Process, "scores", lambda process, layer, pieces: pieces.n_tokens)
        counted(kernels, "two_best_rows", lambda scores, *_: len(scores))
        counted(kernels, "grouped_rows", lambda values, *_: len(values))
        counted(copies_kernel, "count_distinct", lambda ids, *_: len(ids))
        counted(blocks, "play_program", lambda *_: 1)
        trained = train(compose(DEEPSEEK))
    return counts, trained


def test_every_token_is_drawn_routed_and_counted_once_in_every_layer(done):
    """Forward and back, alone and beside another micro-batch, on both ends of the pipeline: one routing. One token more is
    drawn, to see how many scores there are."""
    counts, _ = done
    assert counts["scores"] == MOE_LAYERS * GPUS * TOKENS + 1
    assert counts["two_best_rows"] == MOE_LAYERS * GPUS * TOKENS
    assert counts["count_distinct"] == MOE_LAYERS * GPUS * TOKENS, "a combine sends what its dispatch was counted to send"


def test_few_tokens_take_the_sigmoids_of_all_scores(done):
    assert done[0]["grouped_rows"] <= 2


def test_every_kind_of_pass_is_played_once(done):
    """A stage forward, its inputs' gradients, both gradients, and one stage's forward beside one's backward pass; the gradients
    of weights exchange nothing. As many as there are, of the hundreds of passes of the devices."""
    counts, trained = done
    kinds = {
        tuple((task.kind, trained.layers[task.stage]) for task in tasks)
        for device in trained.pipeline.tasks for tasks in device if [task.kind for task in tasks] != ["W"]
    }  # fmt: skip
    assert counts["play_program"] == len(kinds) < sum(len(device) for device in trained.pipeline.tasks)
