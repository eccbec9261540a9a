"""Bad input ends in one clear line on stderr that names the key or file, the value and the rule; exit 2, nothing written."""

import json
import sys
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from clustersim.cli import main
from clustersim.places import data_folder
from clustersim.types import Trace
from clustersim.workload.trace import write_trace

SMALL = ["topology.nodes=1", "workload.tokens_per_gpu=4", "model.n_layers=1"]       # should it run after all, it is short


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def complaint(capsys, empty_folder):
    """What the command line says of bad input, after checking how it says it."""

    def run(*arguments, small=True):
        given = {a.partition("=")[0].lstrip("+~") for a in arguments}
        extra = [s for s in SMALL if s.partition("=")[0] not in given] if small else []
        before = sorted(empty_folder.rglob("*"))
        code = main([*arguments, *extra])
        out, err = capsys.readouterr()
        assert code == 2, (code, err)
        assert out == ""
        assert err.startswith("clustersim: ")
        assert err.count("\n") == 1
        assert err.endswith("\n")
        assert "Traceback" not in err
        assert sorted(empty_folder.rglob("*")) == before, "something was written"
        return err

    return run


def trace_of(n_experts=32, top_k=4, tokens=64, layers=2, weights=True):
    """A tiny trace: token t takes experts t, t + 1, ... in every layer; 4 sequences."""
    t = np.arange(tokens)
    ids = (t[:, None, None] + np.arange(top_k)) % n_experts + np.zeros((1, layers, 1), int)
    return Trace(
        expert_ids=ids.astype(np.int16), gate_weights=np.full(ids.shape, 1 / top_k, np.float32) if weights else None,
        step=np.zeros(tokens, int), rank=np.zeros(tokens, int), seq=t * 4 // tokens, pos=t % (tokens // 4),
        phase=np.zeros(tokens, np.uint8), n_experts=n_experts,
    )  # fmt: skip


@pytest.fixture
def trace(tmp_path):
    folder = tmp_path / "trace"
    write_trace(trace_of(), folder)
    return folder


def rewritten(folder, change=lambda frame: frame, meta=lambda meta: meta, keep_footer=True):
    """The trace's tokens.parquet, changed behind the writer's back."""
    file = folder / "tokens.parquet"
    frame, footer = pl.read_parquet(file), json.loads(pl.read_parquet_metadata(file)["moetrace"])
    change(frame).write_parquet(file, metadata={"moetrace": json.dumps(meta(footer))} if keep_footer else None)
    return file


# ---- names


NAMES = {
    "model=deepseek_v33": ["model=deepseek_v33", "did you mean deepseek_v3?", "known: deepseek_moe_16b"],
    "topology=h100sxm": ["topology=h100sxm", "did you mean h100_sxm?"],
    "trace=tinny": ["trace=tinny", "did you mean tiny?"],
    "exchange=node_dedupe": ["exchange=node_dedupe", "did you mean node_dedup?"],
    "network=fluids": ["network=fluids", "did you mean fluid?"],
    "placement=contigous": ["placement=contigous", "did you mean contiguous?"],
    "compute=rooflin": ["compute=rooflin", "did you mean roofline?"],
    "compute.tiles=deepgem": ["compute.tiles=deepgem", "did you mean deepgemm_2025_02 or deepgemm_2025_07?"],
    "compute.sms_taken=132": ["compute.sms_taken=132", "the 132 SMs of NVIDIA H100"],
    "topology.gpu.sms=null": ["topology.gpu.sms", "compute=kernels needs it (roofline does not)"],
    "topology.gpu.fp8_achieved=3PFLOP/s": ["gpu.fp8_achieved", "cannot exceed the data sheet"],
    "capacity=megaton": ["capacity=megaton", "did you mean megatron?"],
    "workload=prefil": ["workload=prefil", "did you mean prefill?"],
    "+experiment=capacity": ["experiment=capacity", "did you mean capacity_factor?"],
    "placement.replica=nearst": ["placement.replica=nearst", "it offers by_source, least_load", "did you mean nearest?"],
    "capacity.drop=probs": ["capacity.drop=probs", "it offers bpr, choice_major", "did you mean prob?"],
    "capacity.rule=tutle": ["capacity.rule=tutle", "did you mean tutel?"],
    "placement.name=contig": ["placement=contig", "it offers annealing, coactivation, contiguous", "did you mean contiguous?"],
    "exchange.name=nowhere:direct": ["exchange=nowhere:direct", "No module named 'nowhere'"],
    "exchange.name=math:pi": ["exchange=math:pi", "no function"],
    "topology=null": ["topology=null", "no such topology"],
    "model={name: mine}": ["model takes one option by name"],
    "model=glob(*)": ["model takes one option by name"],
}


@pytest.mark.parametrize("override", NAMES)
def test_an_unknown_name_is_answered_with_the_nearest(complaint, override):
    said = complaint(override)
    assert all(text in said for text in NAMES[override]), said


def test_a_model_that_does_not_fit_says_what_takes_how_much(complaint):
    said = complaint("model=gpt3_175b", small=False)
    assert "memory: gpt3_175b does not fit on 64 GPUs of h100_sxm: a GPU has 80.0 GB and needs" in said
    assert "weights" in said


KEYS = {
    "capacity.factr=1.5": ["capacity.factr: there is no such key", "did you mean capacity.factor?"],
    "+capacity.factr=1.5": ["capacity.factr: there is no such key", "did you mean capacity.factor?"],
    "capcity.factor=1.5": ["capcity.factor: there is no such key", "did you mean capacity.factor?"],
    "tokens_per_gpu=64": ["tokens_per_gpu: there is no such key", "did you mean workload.tokens_per_gpu?"],
    "workload.token_per_gpu=64": ["workload.token_per_gpu", "did you mean workload.tokens_per_gpu?"],
    "modle=gpt_oss_20b": ["modle: there is no such key", "did you mean model?"],
    "+sed=1": ["sed: there is no such key", "did you mean seed?"],
    "seed.x=1": ["seed.x: there is no such key", "did you mean seed?"],
    "topology.nic.bandwith=400Gb/s": ["topology.nic.bandwith", "did you mean topology.nic.bandwidth?"],
    "+topology.nic.bandwith=400Gb/s": ["topology.nic.bandwith", "did you mean bandwidth?"],
    "+topology.node=2": ["topology.node", "did you mean nodes?"],
    "model.hiden=64": ["model.hiden", "did you mean model.hidden?"],
    "+model.hiden=64": ["model.hiden", "did you mean hidden?"],
    "+exchange.chunks=3": ["exchange.chunks", "node_dedup takes chunk_tokens"],
    "+network.resolutoin=0": ["network.resolutoin", "did you mean resolution?"],
    "+placement.foo=1": ["placement.foo", "contiguous takes no options"],
    "+trace.alpha=1": ["trace.alpha: belongs to trace=sampled", "another trace is chosen"],
    "trace.path=mine": ["trace.path: belongs to trace=file", "another trace is chosen"],
    "model/attention=x": ["model/attention: there is no such key"],
}


@pytest.mark.parametrize("override", KEYS)
def test_an_unknown_key_is_answered_with_the_nearest(complaint, override):
    said = complaint(override)
    assert all(text in said for text in KEYS[override]), said


# ---- how it is written


WRITTEN = {
    "capacity.factor": ["capacity.factor", "a key needs a value"],
    "=3": ["=3", "key=value"],
    "seed=[1": ["seed=[1", "key=value"],
    "capacity.factor='1": ["capacity.factor='1", "key=value"],
    "~seed": ["~seed", "nothing can be left out"],
    "~capacity.factor": ["~capacity.factor", "nothing can be left out"],
    "capacity.factor=1,2": ["capacity.factor=1,2", "several values", "-m"],
    "experiment=replicas": ["write +experiment=replicas"],
    "++experiment=replicas": ["write +experiment=replicas"],
    "+model=mixtral_8x7b": ["write model=mixtral_8x7b"],
    "model@other=mixtral_8x7b": ["model@other=mixtral_8x7b", "no effect"],
    "hydra.run.dir=x": ["hydra.run.dir=x", "no effect"],
    "seed=${nothing}": ["seed", "'nothing' not found"],
}


@pytest.mark.parametrize("override", WRITTEN)
def test_what_is_no_override_is_said_to_be_none(complaint, override):
    said = complaint(override)
    assert all(text in said for text in WRITTEN[override]), said


COMMANDS = {
    "lst": ["lst", "no such command", "did you mean list?"],
    "simulate": ["simulate", "no such command"],
    "--foo": ["--foo", "no such flag"],
    "-x seed=1": ["-x", "no such flag"],
    "seed=1 nonsense": ["nonsense", "not an override"],
    "--cfg seed=-1": ["seed=-1", "whole number"],
    "run seed=-1": ["seed=-1", "whole number"],
    "list topolgy": ["list topolgy", "did you mean topology?"],
    "disaggregate output=4": ["disaggregate: needs prompt=TOKENS"],
    "disaggregate prompt=4 output=many": ["output=many: must be a whole number"],
    "disaggregate prompt=4 output=4 prefil.seed=1": ["prefil.seed", "did you mean prefill?"],
    "disaggregate prompt=4 output=4 --rows": ["disaggregate --rows: there is no such flag"],
    "capture": ["capture: takes tiny, or hf MODEL --text FILE"],
    "capture hf": ["capture hf: takes one MODEL, and --text FILE"],
    "capture hf some --text": ["capture hf some --text: takes one MODEL"],
    "capture hf some --text x size=3": ["size=3: capture hf takes MODEL --text FILE ... and out=..."],
    "capture tiny steps=many": ["steps=many", "whole number"],
    "capture tiny scores=yes": ["scores=yes", "true or false"],
    "capture tiny size=3": ["size=3", "capture tiny takes out=..."],
    "-m +experiment=replicas,capacity_factor": ["one experiment at a time"],
    "-m model=mixtral,gpt_oss_20b": ["model=mixtral", "did you mean mixtral_8x22b or mixtral_8x7b?"],
}


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_that_is_not_understood_says_so(complaint, line):
    said = complaint(*line.split(), small=False)
    assert all(text in said for text in COMMANDS[line]), said


# ---- values


VALUES = {
    "seed=abc": ["seed=abc", "whole number from 0"],
    "seed=-1": ["seed=-1", "whole number from 0"],
    "seed=1.5": ["seed=1.5", "whole number from 0"],
    "seed=true": ["seed=true", "whole number from 0"],
    "seed=null": ["seed=null", "whole number from 0"],
    "workload.tokens_per_gpu=many": ["workload.tokens_per_gpu=many", "must be a number"],
    "workload.tokens_per_gpu=0": ["workload.tokens_per_gpu=0", "whole number from 1"],
    "workload.tokens_per_gpu=100000": ["workload.tokens_per_gpu=100000", "24576 tokens"],
    "workload.phase=decode": ["workload.phase=decode", "write workload=decode"],
    "capacity.factor=0": ["capacity.factor=0", "number above 0"],
    "capacity.factor=-1": ["capacity.factor=-1", "number above 0"],
    "capacity.factor=nan": ["capacity.factor=nan", "number above 0"],
    "capacity.factor=inf": ["capacity.factor=inf", "number above 0"],
    "capacity=deepspeed capacity.factor=0": ["capacity.factor=0", "number above 0"],
    "capacity=deepspeed": ["capacity.pad=true", "exchange=node_dedup cannot send padding", "exchange=direct"],
    "capacity.pad_multiple=128": ["capacity.pad_multiple=128", "node_dedup cannot send padding", "capacity.where=expert"],
    "capacity.pad_multiple=0": ["capacity.pad_multiple=0", "whole number from 1 up"],
    "capacity.factor=1 capacity.drop=reroute": ["capacity.drop=reroute", "no router scores", "trace=sampled"],
    "capacity.scope=rank": ["capacity.scope=rank", "source or group or global"],
    "capacity.factor=lots": ["capacity.factor=lots", "number above 0"],
    "capacity.factor=[1,2]": ["capacity.factor=[1, 2]", "number above 0"],
    "placement.slots=16": ["placement.slots=16", "fewer slots than the 32 experts"],
    "placement.slots=33": ["placement.slots=33", "8 GPUs cannot share them evenly"],
    "placement.slots=some": ["placement.slots=some", "whole number"],
    "network.resolution=1.5": ["network.resolution=1.5", "from 0"],
    "network.resolution=fine": ["network.resolution=fine", "a number"],
    "exchange.chunk_tokens=0": ["exchange.chunk_tokens=0", "at least one"],
    "exchange.chunk_tokens=1.5": ["exchange.chunk_tokens=1.5", "whole number"],
    "+exchange.metadata_bytes=-1": ["exchange.metadata_bytes=-1", "negative"],
    "+exchange.metadata_bytes=few": ["exchange.metadata_bytes=few", "a number or null"],
    "topology.nodes=0": ["topology.nodes=0", "whole number from 1"],
    "topology.nic.bandwidth=50": ["topology.nic.bandwidth = 50", "unit"],
    "topology.nic.bandwidth=fast": ["topology.nic.bandwidth = 'fast'", "unit"],
    "topology.nic.latency=-1us": ["topology.nic.latency = '-1us'", "from 0 up"],
    "topology.nic.oversubscription=0.5": ["topology.nic.oversubscription=0.5", "from 1 up"],
    "topology.nic=null": ["topology.nic", "is missing in h100_sxm; it has the fields: per_gpu"],
    "topology.nic.per_gpu=1/3": ["topology.nic.per_gpu=1/3", "share evenly"],
    "topology.routing.name=ecpm": ["topology.routing=ecpm", "did you mean ecmp?"],
    "topology.routing.nam=ecmp": ["topology.routing.nam", "did you mean topology.routing.name?"],
    "topology.routing.name=ecmp +topology.routing.sed=1": ["topology.routing.sed=1", "did you mean seed?"],
    "+topology.fabric.name=fat_tre": ["topology.fabric=fat_tre", "did you mean fat_tree?"],
    "+topology.fabric.name=leaf_spine +topology.fabric.spines=0": ["topology.fabric.spines=0", "from 1 up"],
    "topology=rail_only topology.routing.name=ecmp topology.nodes=2": ["GPU 9 cannot be reached from GPU 0", "name=pxn"],
    "topology=dragonfly topology.nodes=5": ["topology.fabric.routers=4", "40 NICs", "36 switches"],
    "topology=multi_plane topology.fabric.planes=5 topology.nodes=8": ["topology.fabric.planes=5", "8 NICs of a node"],
    "topology=hand_drawn topology.nodes=2 topology.graph.trunk.bandwidth=800": ["topology.graph.trunk.bandwidth = 800", "unit"],
    "topology=hand_drawn topology.nodes=3": ["hand_drawn", "GPU 8 cannot be reached from GPU 0"],
    "topology=hand_drawn +topology.nic.rails=true topology.nodes=2": ["topology.nic", "hand_drawn has a graph"],
    "topology=no/such/machine.yaml": ["topology=no/such/machine.yaml", "no such file"],
    "model.top_k=64": ["model.top_k = 64", "n_experts = 32"],
    "model.hidden=wide": ["model.hidden = 'wide'", "whole number"],
    "model.dispatch_bytes=0": ["model.dispatch_bytes = 0", "above 0"],
    "model.attention.kind=gqua": ["model.attention.kind = 'gqua'", "did you mean gqa?"],
    "output=null": ["output=null", "name of a folder"],
    "output=": ["output=", "name of a folder"],
    "trace=sampled trace.alpha=0": ["trace.alpha=0", "above 0"],
    "trace=sampled trace.alpha=even": ["trace.alpha=even", "a number"],
    "trace=sampled trace.preset=web_txt": ["trace.preset=web_txt", "did you mean web_text?"],
    "trace=sampled trace.parameters=no.yaml": ["trace.parameters=no.yaml", "clustersim fit"],
    "trace=sampled trace.alpha=1 trace.sigma=1": ["trace.sigma=1", "trace.alpha says already"],
    "trace=sampled trace.topic=2": ["trace.topic=2", "from 0 to 1"],
    "trace=sampled trace.tokens=all": ["trace.tokens=all", "correlated or independent"],
    "trace=sampled trace.counts=true": ["exchange=node_dedup", "single tokens", "exchange=direct"],
    "trace=sampled trace.sequence=0": ["sequence=0", "at least one token"],
    "trace=balanced trace.sequence=1.5": ["trace.sequence=1.5", "whole number"],
    "network=bound network.resolution=0": ["network.resolution", "belongs to network=fluid"],
    "topology.nic.bandwidth=null topology.nodes=2": ["h100_sxm", "GPU 8 cannot be reached from GPU 0"],
    "topology.nvlink.bandwidth=null topology.nvlink.achievable=null topology.nic.bandwidth=null": [
        "h100_sxm", "GPU 1 cannot be reached from GPU 0",
    ],
    "model.n_experts=64": ["trace=tiny: 32 experts, top-4", "model gpt_oss_20b has 64 experts, top-4"],
    "model.top_k=2": ["trace=tiny: 32 experts, top-4", "model gpt_oss_20b has 32 experts, top-2"],
}  # fmt: skip


@pytest.mark.parametrize("line", VALUES)
def test_a_value_that_cannot_be_is_named_with_the_rule(complaint, line):
    said = complaint(*line.split(" "))
    assert all(text in said for text in VALUES[line]), said


def test_a_folder_that_cannot_be_written_is_named(complaint, tmp_path):
    (tmp_path / "taken").write_text("a file")
    said = complaint(f"output={tmp_path / 'taken'}")
    assert f"output={tmp_path / 'taken'}" in said
    assert "cannot be written" in said


def test_a_machine_of_the_users_own_is_named_by_its_file(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text((data_folder("topologies") / "hand_drawn.yaml").read_text())
    given = [f"topology={tmp_path / 'mine.yaml'}", "topology.nodes=2", "topology.graph.trunk.latency=1us"]
    assert main([*given, *(text for text in SMALL if "nodes" not in text)]) == 0
    assert "8 GPUs of mine" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("text", "says"), [("nodes: [", "not a YAML file"), ("gpus: 2\n", "no key nodes"), ("nodes: 2\n", "topology.gpu")]
)
def test_a_file_that_describes_no_machine(complaint, tmp_path, text, says):
    (tmp_path / "mine.yaml").write_text(text)
    assert says in complaint(f"topology={tmp_path / 'mine.yaml'}", small=False)


# ---- traces


@pytest.mark.parametrize("path", ["trace.path=null", "trace.path=", None])
def test_a_file_that_is_not_named_is_asked_for(complaint, path):
    assert "write trace.path=" in complaint("trace=file", *filter(None, [path]))


def test_a_file_that_is_not_there(complaint, tmp_path):
    said = complaint("trace=file", f"trace.path={tmp_path / 'nowhere'}")
    assert str(tmp_path / "nowhere") in said
    assert "no such trace" in said
    (tmp_path / "bare").mkdir()
    assert "holds no tokens.parquet" in complaint("trace=file", f"trace.path={tmp_path / 'bare'}")


def test_a_file_that_is_not_parquet(complaint, trace):
    (trace / "tokens.parquet").write_text("step,rank,seq\n0,0,0\n")
    said = complaint("trace=file", f"trace.path={trace}")
    assert f"{trace}/tokens.parquet: not a Parquet file" in said


@pytest.mark.parametrize("keep", [0.5, 0.97])
def test_a_file_that_is_truncated(complaint, trace, keep):
    file = trace / "tokens.parquet"
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * keep)])
    assert f"{file}: truncated Parquet" in complaint("trace=file", f"trace.path={trace}")


def test_a_file_that_is_damaged_inside(complaint, trace):
    file = trace / "tokens.parquet"
    data = bytearray(file.read_bytes())
    data[-200:-8] = b"\xff" * 192
    file.write_bytes(bytes(data))
    assert str(file) in complaint("trace=file", f"trace.path={trace}")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: {**m, "schema": "moetrace/9"}, "schema is 'moetrace/9'"),
        (lambda m: {**m, "kind": "counts"}, "kind is 'counts'"),
        (lambda m: {**m, "num_experts": 0}, "num_experts is 0"),
        (lambda m: {**m, "top_k": 40}, "top_k is 40"),
        (lambda m: {**m, "num_layers": 3}, "expert_ids holds 8 bytes per token"),
    ],
)
def test_a_file_that_describes_itself_wrongly(complaint, trace, change, says):
    file = rewritten(trace, meta=change)
    said = complaint("trace=file", f"trace.path={trace}")
    assert f"{file}: " in said
    assert says in said


def test_a_file_of_another_kind(complaint, trace):
    file = rewritten(trace, keep_footer=False)
    assert f"{file}: its footer has no key 'moetrace'" in complaint("trace=file", f"trace.path={trace}")


def test_a_column_that_is_missing_or_of_another_type(complaint, trace):
    rewritten(trace, lambda frame: frame.drop("pos"))
    assert "has no column 'pos'" in complaint("trace=file", f"trace.path={trace}")
    rewritten(trace, lambda frame: frame.with_columns(pos=pl.lit("here")))
    assert "column 'pos' is String" in complaint("trace=file", f"trace.path={trace}")


def test_an_expert_that_the_model_does_not_have(complaint, trace):
    rewritten(trace, meta=lambda m: {**m, "num_experts": 31})
    said = complaint("trace=file", f"trace.path={trace}")
    assert "expert id 31 is out of range; 31 experts are 0..30" in said


def test_a_trace_without_tokens(complaint, trace):
    file = rewritten(trace, lambda frame: frame.clear())
    assert f"{file}: holds no tokens" in complaint("trace=file", f"trace.path={trace}")


def test_a_trace_of_another_model_names_both(complaint, tmp_path):
    write_trace(trace_of(n_experts=16, top_k=2), tmp_path / "other")
    said = complaint("trace=file", f"trace.path={tmp_path / 'other'}")
    assert f"trace.path={tmp_path / 'other'}: 16 experts, top-2; model gpt_oss_20b has 32 experts, top-4" in said


def test_a_trace_that_does_not_fill_a_gpu(complaint, trace):
    said = complaint("trace=file", f"trace.path={trace}", "workload.tokens_per_gpu=65")
    assert "workload.tokens_per_gpu=65" in said
    assert "64 tokens" in said


def test_dropping_by_weight_needs_weights(complaint, tmp_path):
    write_trace(trace_of(weights=False), tmp_path / "bare")
    path = f"trace.path={tmp_path / 'bare'}"
    said = complaint("trace=file", path, "capacity.factor=0.5", "capacity.drop=prob")
    assert "capacity.drop=prob" in said
    assert "no gate weights" in said
    assert main(["trace=file", path, "capacity.factor=0.5", "capacity.drop=position", *SMALL]) == 0


def test_a_weight_that_is_no_number(complaint, trace):
    bad = np.full((64, 2, 4), np.nan, "<f2")
    rewritten(trace, lambda frame: frame.with_columns(gate_weights=pl.Series([row.tobytes() for row in bad])))
    assert "gate weight nan" in complaint("trace=file", f"trace.path={trace}")


def test_an_expert_twice_in_one_token(complaint, trace):
    twice = np.zeros((64, 2, 4), np.uint8)
    rewritten(trace, lambda frame: frame.with_columns(expert_ids=pl.Series([row.tobytes() for row in twice])))
    assert "picked twice" in complaint("trace=file", f"trace.path={trace}")


def test_a_trace_with_variable_k_is_no_bad_input(tmp_path):
    whole = trace_of()
    ids = whole.expert_ids.copy()
    ids[::3, :, 1:] = -1
    write_trace(replace(whole, expert_ids=ids), tmp_path / "some")
    assert main(["trace=file", f"trace.path={tmp_path / 'some'}", *SMALL]) == 0


# ---- what is not there



def test_capture_without_torch_says_how_to_get_it(complaint, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)     # makes `import torch` fail
    said = complaint("capture", "tiny", "out=there", "steps=1", small=False)
    assert "pip install 'clustersim[capture]'" in said


def test_a_bug_of_ours_is_not_called_bad_input(monkeypatch):
    def broken(*_, **__):
        raise ValueError("ours")

    monkeypatch.setattr("clustersim.simulation.simulate", broken)
    with pytest.raises(ValueError, match="ours"):
        main(SMALL)
