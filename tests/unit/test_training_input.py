"""What a training step refuses: one line that names the key, what it was, and what works instead."""

import pytest

from clustersim import InputError, simulate
from clustersim.cli import main
from tests.reports import TRAINED

# overrides: what the line has to say
WRONG = {
    "parallel.tensor=3": ["parallel: tensor 3 x context 1 x pipeline 2 = 6 does not divide 4 GPUs"],
    "parallel.tensor=0": ["parallel.tensor=0: must be a whole number from 1 up"],
    "parallel.tensor=-2": ["parallel.tensor=-2: must be a whole number from 1 up"],
    "parallel.tensor=two": ["parallel.tensor=two: must be a number"],
    "parallel.tensor=2.5": ["parallel.tensor=2.5: must be a whole number from 1 up"],
    "parallel.tensor=[2]": ["parallel.tensor=[2]: must be a number"],
    "parallel.tensor=null": ["parallel.tensor=null: must be a whole number from 1 up"],
    "parallel.tensor=true": ["parallel.tensor=true: must be a number"],
    "parallel.tensor=4": ["does not divide 4 GPUs; nearest that does: parallel.tensor=2"],
    "parallel.sequence_parallel=1": ["parallel.sequence_parallel=1: must be true or false"],
    "parallel.context=3": ["context 3", "does not divide 4 GPUs"],
    "parallel.context=0": ["parallel.context=0: must be a whole number"],
    "parallel.pipeline=3": ["pipeline 3 = 3 does not divide 4 GPUs; nearest that does: parallel.pipeline=4"],
    "parallel.pipeline=4 model.n_layers=1": ["parallel.pipeline=4 x virtual=1: 4 chunks are more than the 1 layers"],
    "parallel.virtual=2": ["parallel.virtual=2: one_f_one_b has one chunk per stage; use parallel.order=interleaved"],
    "parallel.virtual=2 parallel.order=zero_bubble": ["parallel.virtual=2", "use virtual=1"],
    "parallel.virtual=3 parallel.order=dualpipe": ["parallel.virtual=3: dualpipe has one chunk", "use virtual=1"],
    "parallel.virtual=0": ["parallel.virtual=0: must be a whole number from 1 up"],
    "parallel.order=interleaved parallel.virtual=2 workload.global_batch=6": [
        "3 micro-batches are no multiple of 2 stages; nearest that is: 4",
        "one is micro_batch 1 x 2 data parallel groups = 2 sequences of workload.global_batch=6"],
    "parallel.order=dualpipe workload.global_batch=6": [
        "2 stages, 3 micro-batches", "nearest that does: 4 micro-batches on 2 stages"],
    "parallel.order=dualpipe parallel.pipeline=1": ["needs an even number of stages"],
    "parallel.order=dualpip": ["parallel.order=dualpip: there is no such order", "did you mean dualpipe?"],
    "parallel.order=null": ["parallel.order=null: there is no such order"],
    "parallel.order=7": ["parallel.order=7: must be text"],
    "parallel.expert=3": ["expert 3", "does not divide 4 GPUs"],
    "parallel.expert=8": ["expert 8", "does not divide 4 GPUs; nearest that does: parallel.expert=2"],
    "parallel.expert=0": ["parallel.expert=0: must be a whole number from 1 up"],
    "parallel.expert=64 parallel.pipeline=1 topology.nodes=16 workload.global_batch=64": [
        "parallel.expert=64: more than the 32 experts of a layer; nearest that works: 32"],
    "parallel.expert_tensor=2 parallel.expert=2 parallel.pipeline=1 placement.slots=33": [
        "placement.slots=33: must be a whole number that 2 groups of 2 GPUs share; nearest that does: 32"],
    "parallel.expert_tensor=4 parallel.pipeline=1 model.expert_ffn=2882": [
        "parallel.expert_tensor=4: does not divide the 2882 columns of an expert; nearest that does: 2"],
    "parallel.zero=4": ["parallel.zero=4: must be 0, 1, 2 or 3"],
    "parallel.zero=-1": ["parallel.zero=-1: must be a whole number from 0 up"],
    "parallel.zero=1.0": ["parallel.zero=1.0: must be a whole number"],
    "parallel.stage_layers=[4]": [
        "parallel.stage_layers=[4]: must be a number of layers for each of 2 stages, 4 in all; null is [2, 2]"],
    "parallel.stage_layers=[2,3]": ["parallel.stage_layers=[2, 3]", "4 in all"],
    "parallel.stage_layers=[-1,5]": ["parallel.stage_layers=[-1, 5]"],
    "parallel.stage_layers=[1.5,2.5]": ["parallel.stage_layers=[1.5, 2.5]"],
    "parallel.stage_layers=4": ["parallel.stage_layers=4: must be a number of layers for each"],
    "parallel.stage_layers=all": ["parallel.stage_layers=all: must be a number of layers for each"],
    "parallel.tensr=2": ["parallel.tensr: there is no such key; did you mean parallel.tensor?"],
    "+parallel.data=2": ["parallel.data: there is no such key"],
    "workload.sequence=0": ["workload.sequence=0: must be a whole number from 1 up"],
    "workload.sequence=1.5": ["workload.sequence=1.5: must be a whole number"],
    "workload.sequence=null": ["workload.sequence=null: must be a whole number"],
    "workload.sequence=255 parallel.tensor=2": ["workload.sequence=255: does not divide over 2 GPUs; nearest that does: 256"],
    "workload.sequence=1 parallel.context=2": ["workload.sequence=1: does not divide over 2 GPUs; nearest that does: 2"],
    "workload.micro_batch=0": ["workload.micro_batch=0: must be a whole number"],
    "workload.micro_batch=3": ["workload.global_batch=16: must be a multiple of micro_batch 3 x 2", "nearest that is: 18"],
    "workload.micro_batch=many": ["workload.micro_batch=many: must be a number"],
    "workload.global_batch=1": ["workload.global_batch=1: must be a multiple of", "nearest that is: 2"],
    "workload.global_batch=0": ["workload.global_batch=0: must be a whole number"],
    "workload.steps=0": ["workload.steps=0: must be a whole number"],
    "workload.steps=100": ["workload.sequence=256 workload.micro_batch=1 workload.steps=100", "trace=sampled"],
    "workload.deal=cards": ["workload.deal=cards: there is no such deal"],
    "workload.domain_steps=x": ["workload.domain_steps=x: must be a whole number"],
    "workload.recompute=some": ["workload.recompute=some: must be one of none, selective, norm_act, latents, deepseek_v3, full"],
    "workload.recompute=null": ["workload.recompute=null: must be one of"],
    "workload.optimiser=adma": ["workload.optimiser=adma: must be one of adam, adam_bf16, muon; did you mean adam?"],
    "workload.gradient_bytes=0": ["workload.gradient_bytes=0: must be a number above 0"],
    "workload.gradient_bytes=x": ["workload.gradient_bytes=x: must be a number"],
    "workload.gradient_bytes=true": ["workload.gradient_bytes=true: must be a number"],
    "workload.hide_gradients=0": ["workload.hide_gradients=0: must be true or false"],
    "workload.tokens_per_gpu=32": ["workload.tokens_per_gpu: belongs to workload="],
    "model=llama_3_2_1b topology.gpus_per_node=64 parallel.tensor=64 parallel.pipeline=1": [
        "parallel.tensor=64: does not divide heads = 32", "nearest that does: 32"],
    "trace=sampled trace.counts=true exchange=node_dedup": ["trace.counts=true", "use exchange=direct"],
    "placement.slots=16": ["placement.slots=16: fewer slots than the 32 experts"],
    "router=expert_choice": ["router=expert_choice: trace=tiny has expert ids only"],
    "decide=periodic workload.steps=8": ["decide=periodic: a training step has one placement", "use decide=once"],
    "exchange=trtllm_one_sided parallel.order=dualpipe": ["copies with all 132 SMs", "use parallel.order=one_f_one_b"],
    "compute.sms_taken=500": ["compute.sms_taken=500: must leave some of the 132 SMs"],
    "model=deepseek_v3 trace=sampled": ["memory: deepseek_v3 does not fit on 4 GPUs", "would fit"],
    "export.first_layer=2": ["export.first_layer=2", "use 0"],
    "network=packet network.chunk=1B workload.sequence=4096": ["network.chunk=1B", "packets over links"],
    "seed=-1": ["seed=-1: must be a whole number from 0 up"],
}  # fmt: skip


def overrides(text):
    more = text.split(" ")
    own = {one.partition("=")[0] for one in more}
    return [*(t for t in TRAINED if t.partition("=")[0] not in own and not ("model" in own and "n_layers" in t)), *more]


@pytest.mark.parametrize("text", WRONG)
def test_what_cannot_be_trained_is_refused_in_one_line(text):
    with pytest.raises(InputError) as caught:
        simulate(overrides(text))
    said = str(caught.value)
    assert "\n" not in said
    for part in WRONG[text]:
        assert part in said


def test_the_command_line_says_it_on_stderr_and_exits_with_2(capsys):
    assert main(overrides("parallel.order=dualpip")) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("clustersim: parallel.order=dualpip: ")
    assert told.err.count("\n") == 1


@pytest.mark.parametrize("text", [
    "placement.slots=64", "placement=eplb placement.slots=40", "capacity.factor=1.0 exchange=direct", "network=bound",
    "network=packet exchange=direct",
    "trace=sampled trace.counts=true exchange=direct router=recorded",
    "trace=sampled router=expert_choice",
    "workload.steps=3", "workload.deal=shuffled", "replicates=2 trace=sampled", "compute=none", "compute=roofline",
    "exchange=trtllm_one_sided", "parallel.virtual=null parallel.order=interleaved", "workload.sequence=1", "parallel.zero=2",
    "parallel.zero=3", "topology=multi_plane topology.nodes=8 topology.gpus_per_node=8 workload.global_batch=64",
    "model=llama_3_2_1b topology=multi_plane topology.nodes=8 topology.gpus_per_node=8 workload.global_batch=64",
])  # fmt: skip
def test_what_can_be_trained_is(text):
    row = simulate(overrides(text)).summary
    parts = row["compute_s"] + row["exposed_comm_s"] + row["bubble_s"]
    assert 0 < row["step_s"] == pytest.approx(parts, rel=1e-9)
