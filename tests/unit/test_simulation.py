"""From a run to a result: what a run_id stands for, the laws of the record, limits that agree, and a closed form."""

import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import clustersim as cs
from clustersim import identity, places, playing
from clustersim.config import compose
from clustersim.identity import identify
from clustersim.model import model_from
from clustersim.places import PACKAGE
from clustersim.types import InputError, Trace
from clustersim.workload.source import from_sampler
from clustersim.workload.trace import read_trace, write_trace

SMALL = ["topology.nodes=2", "topology.gpus_per_node=4", "workload.tokens_per_gpu=32", "model.n_layers=2"]
SAYING = ("layers", "gpus", "links", "experts", "pairs", "placements")    # the tables without the row that repeats the settings
TINY = PACKAGE / "workload" / "data" / "tiny"


def small(*overrides):
    own = {text.partition("=")[0] for text in overrides}
    return [*(text for text in SMALL if text.partition("=")[0] not in own), *overrides]


def fresh(*overrides):
    return cs.simulate(small(*overrides))


run = cache(fresh)              # for tests that ask about one run from several sides


def same(one, two, tables=SAYING):
    return all(one.tables[name].equals(two.tables[name]) for name in tables)


# ---- the interface


@pytest.mark.parametrize("name", cs.__all__)
def test_what_the_package_offers_can_be_had(name):
    if name == "record":
        pytest.importorskip("torch", reason="capture needs PyTorch (pip install '.[capture]')")
    home = importlib.import_module(f"clustersim.{cs._HOME[name]}")
    assert getattr(cs, name) is getattr(home, name)
    assert name in dir(cs)


def test_what_it_does_not_offer_is_no_attribute():
    with pytest.raises(AttributeError, match="nonsense"):
        cs.nonsense  # noqa: B018


def test_the_contract_of_a_result(tmp_path):
    result = cs.simulate([*SMALL, f"output={tmp_path}"])
    assert isinstance(result, cs.Result)
    assert set(result.tables) == {"summary", "memory", *SAYING}
    assert all(isinstance(table, pl.DataFrame) for table in result.tables.values())
    assert all(value is None or isinstance(value, str | int | float) for value in result.summary.values())
    assert json.dumps(result.summary)
    assert result.summary["model"] == "gpt_oss_20b"
    assert result.folder == tmp_path / "runs" / result.run_id
    assert not result.folder.exists(), "simulate writes nothing"
    assert result.save() == result.folder
    assert cs.scan(tmp_path).collect()["step_s"].item() == result.summary["step_s"]
    told = json.loads((result.folder / "run.json").read_text())
    assert told["notes"] == list(result.notes)
    assert told["overrides"] == SMALL


def test_the_library_functions_of_the_contract():
    cluster = cs.load_cluster("ideal_rail", nodes=1, gpus_per_node=2)
    assert cs.transfer(cluster, [[0, 45e9], [0, 0]]).makespan == pytest.approx(0.1)
    assert cs.flow_times([1.0], [[0], [0]], [1.0, 2.0], 0.0).tolist() == [2.0, 3.0]


def test_a_run_may_be_given_composed():
    assert same(cs.simulate(compose(SMALL)), run())


def test_every_override_with_a_dot_becomes_a_column():
    summary = run("placement.slots=32", "+exchange.metadata_bytes=8", "topology.nic.bandwidth=200Gb/s").summary
    assert summary["placement.slots"] == 32
    assert summary["exchange.metadata_bytes"] == 8
    assert summary["topology.nic.bandwidth"] == "200Gb/s"


def test_progress_rises_to_one():
    told = []
    cs.simulate(SMALL, progress=lambda fraction, what: told.append((fraction, what)))
    fractions = [fraction for fraction, what in told if "compiling" not in what]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1


def test_what_a_reader_has_to_know_is_noted():
    assert any("repeat to fill the 9 MoE layers" in note for note in run("model.n_layers=9").notes)
    assert any("first 2 of the trace's 6 layers" in note for note in run().notes)
    assert any("do not contend" in note for note in run("network=bound").notes)
    assert any("open loop" in note for note in run("capacity.factor=0.5").notes)
    assert not any("open loop" in note for note in run("capacity.factor=0.5", "trace=sampled").notes)
    assert run("trace=balanced").notes == ()


# ---- what a run_id stands for


def run_id(*overrides):
    """Known before anything is played."""
    return identify(compose(small(*overrides))).run_id


def test_a_run_id_changes_with_everything_that_the_run_depends_on(monkeypatch):
    ids = [
        run_id(*overrides)
        for overrides in (
            [], ["seed=1"], ["capacity.factor=1.0"], ["capacity.factor=1.0", "capacity.drop=position"], ["exchange=direct"],
            ["network=bound"], ["compute=none"], ["placement=round_robin"], ["placement.slots=64"], ["placement.replica=nearest"],
            ["capacity.factor=1.0", "capacity.where=expert"], ["capacity=tutel", "exchange=direct"],
            ["topology=h800_sxm"], ["topology.nic.bandwidth=200Gb/s"], ["workload.tokens_per_gpu=33"], ["model.hidden=4096"],
            ["trace=sampled"], ["trace=sampled", "trace.alpha=3"], ["trace=balanced"], ["exchange.chunk_tokens=8"],
        )
    ]  # fmt: skip
    monkeypatch.setattr(identity, "PHYSICS", identity.PHYSICS + 1)
    ids.append(run_id())
    assert len(set(ids)) == len(ids)
    assert all(len(one) == 12 and int(one, 16) >= 0 for one in ids)


def test_a_run_id_does_not_change_with_where_results_go_nor_with_how_it_is_said():
    assert run_id() == run().run_id == run_id("output=elsewhere") == run_id("seed=0") == run_id("model=gpt_oss_20b")


def test_a_run_id_changes_with_the_contents_of_the_trace_and_not_with_its_age(tmp_path):
    shutil.copytree(TINY, tmp_path / "mine")
    mine = ["trace=file", f"trace.path={tmp_path / 'mine'}"]
    before = run_id(*mine)
    os.utime(tmp_path / "mine" / "tokens.parquet", (0, 0))
    assert run_id(*mine) == before
    trace = read_trace(TINY)
    ids = trace.expert_ids.copy()
    ids[-1, -1] = ids[-1, -1, ::-1]                     # one token's choices in another order
    write_trace(replace(trace, expert_ids=ids), tmp_path / "mine")
    assert run_id(*mine) != before


def test_a_run_id_changes_with_the_contents_of_the_topology(tmp_path, monkeypatch):
    before = run_id("topology=ideal_rail")
    folder = tmp_path / "topologies"
    shutil.copytree(places.data_folder("topologies"), folder)
    real = places.group_folder
    monkeypatch.setattr("clustersim.composition.group_folder", lambda group: folder if group == "topology" else real(group))
    assert run_id("topology=ideal_rail") == before
    file = folder / "ideal_rail.yaml"
    file.write_text(file.read_text().replace("50 GB/s", "51 GB/s"))
    assert run_id("topology=ideal_rail") != before


def test_a_run_id_does_not_change_with_comments_and_sources_nor_with_where_files_are(tmp_path):
    for name in ("here", "there"):
        shutil.copytree(TINY, tmp_path / name)
        shutil.copy(places.data_folder("topologies") / "ideal_rail.yaml", tmp_path / name / "mine.yaml")
        shutil.copy(PACKAGE / "workload" / "data" / "presets" / "moderate.yaml", tmp_path / name / "p.yaml")
    mine = tmp_path / "there" / "mine.yaml"
    mine.write_text("# another word\n" + mine.read_text().replace("sources:", "sources:\n  seen: nowhere"))
    (tmp_path / "there" / "p.yaml").write_text("# another word\n" + (tmp_path / "there" / "p.yaml").read_text())
    for overrides in (
        ["trace=file", "trace.path={}"], ["topology={}/mine.yaml"], ["trace=sampled", "trace.parameters={}/p.yaml"],
    ):  # fmt: skip
        ids = {identify(compose([text.format(tmp_path / name) for text in overrides])).run_id for name in ("here", "there")}
        assert len(ids) == 1, overrides
    folder = tmp_path / "here"
    ids = {identify(compose(["trace=file", f"trace.path={path}"])).run_id for path in (folder, folder / "tokens.parquet")}
    assert len(ids) == 1


@pytest.mark.parametrize(("kernel", "constant", "overrides"), [
    ("gemm", "3us", ["compute.constants={}"]),
    ("deepep_v1", "62us", ["exchange=deepep_normal", "exchange.kernel={}"]),
    ("megatron", "0.74", ["workload=training", "workload.framework={}"]),
])  # fmt: skip
def test_a_run_id_changes_with_a_constant_in_a_file_and_not_with_the_name_of_the_file(tmp_path, kernel, constant, overrides):
    text = (PACKAGE / "conf" / "kernel" / f"{kernel}.yaml").read_text()
    assert f"value: {constant}," in text
    texts = {"same": text, "alike": f"# another word\n{text}", "other": text.replace(f"value: {constant},", "value: 0.5,")}
    ids = {}
    for name, written in texts.items():
        (tmp_path / f"{name}.yaml").write_text(written)
        ids[name] = identify(compose([said.format(tmp_path / f"{name}.yaml") for said in overrides])).run_id
    assert ids["same"] == ids["alike"] == identify(compose([said.format(kernel) for said in overrides])).run_id
    assert ids["same"] != ids["other"]


def test_a_preset_by_its_name_or_by_its_file_is_the_same_run():
    file = PACKAGE / "workload" / "data" / "presets" / "narrow_domain.yaml"
    by_name = run_id("trace=sampled", "trace.preset=narrow_domain")
    assert run_id("trace=sampled", f"trace.parameters={file}") == by_name != run_id("trace=sampled")


def test_a_run_id_changes_with_a_plug_in_of_the_users(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    ids = []
    for name in ("one", "two"):
        (tmp_path / "my_exchange.py").write_text(f"def mine(phase, routing, placement, cluster, model): '{name}'")
        ids.append(identify(compose(["exchange=direct", "exchange.name=my_exchange:mine"])).run_id)
    assert ids[0] != ids[1]


def test_a_trace_that_is_changed_during_the_run_is_noticed(tmp_path, monkeypatch):
    shutil.copytree(TINY, tmp_path / "mine")
    real = playing.play

    def changed_meanwhile(*arguments):
        file = tmp_path / "mine" / "sequences.parquet"
        file.write_bytes(file.read_bytes() + b"PAR1")
        return real(*arguments)

    monkeypatch.setattr(playing, "play", changed_meanwhile)
    with pytest.raises(InputError, match="changed during the run"):
        cs.simulate([*SMALL, "trace=file", f"trace.path={tmp_path / 'mine'}"])


# ---- laws of the record


def test_law_30_the_same_run_gives_the_same_tables_and_another_seed_others():
    sampled = ["trace=sampled", "capacity.factor=1.0"]
    one, two, other = fresh(*sampled), fresh(*sampled), run(*sampled, "seed=1")
    assert same(one, two, ("summary", *SAYING))
    assert not one.tables["experts"].equals(other.tables["experts"])
    assert not one.tables["gpus"].equals(other.tables["gpus"])
    for name in SAYING:
        assert one.tables[name].shape == other.tables[name].shape
    assert same(run(), run("seed=1")), "a recorded trace has nothing to draw"


def test_law_31_the_order_of_overrides_does_not_matter():
    overrides = ["capacity.factor=1.0", "exchange=direct", "placement.slots=64", "trace=sampled"]
    one, two = run(*overrides), run(*overrides[::-1])
    assert one.run_id == two.run_id
    assert same(one, two)


def test_law_31_the_order_of_sets_does_not_matter():
    """Another process has other hashes."""
    script = (
        "import hashlib, clustersim as cs\n"
        f"r = cs.simulate({small('capacity.factor=1.0')!r})\n"
        "print(hashlib.sha256(b''.join(r.tables[t].write_ipc(None).getvalue() for t in sorted(r.tables))).hexdigest())"
    )
    other = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    environment = {**os.environ, "PYTHONHASHSEED": other, "PYTHONPATH": str(Path(cs.__file__).parents[1])}
    command = [sys.executable, "-c", script]
    there = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    tables = fresh("capacity.factor=1.0").tables
    here = hashlib.sha256(b"".join(tables[name].write_ipc(None).getvalue() for name in sorted(tables))).hexdigest()
    assert there.stdout.strip() == here


def test_law_32_a_recorded_router_replays_as_it_was(tmp_path):
    """Every GPU's tokens are one sequence of the trace, so that dealing gives them back."""
    model = model_from(compose(SMALL).config["model"])
    live = from_sampler(model, 8, 32, seed=5, alpha=2.0, sequence=32)
    chosen = [live.choose(layer) for layer in range(2)]
    ids, weights = (np.stack(parts, axis=1) for parts in zip(*((one.ids, one.weights) for one in chosen), strict=True))
    zero = np.zeros(256, int)
    write_trace(
        Trace(
            expert_ids=ids.astype(np.int16), gate_weights=weights.astype(np.float32), step=zero, rank=live.source,
            seq=live.source, pos=live.index, phase=zero.astype(np.uint8), n_experts=model.n_experts,
        ),
        tmp_path / "recorded",
    )  # fmt: skip
    routed = run("trace=sampled", "trace.sequence=32", "seed=5")
    replayed = run("trace=file", f"trace.path={tmp_path / 'recorded'}")
    assert same(routed, replayed)


@pytest.mark.parametrize("drop", ["prob", "position"])
def test_law_33_a_huge_capacity_is_none(drop):
    huge, none = run("capacity.factor=1000", f"capacity.drop={drop}"), run()
    assert same(huge, none, ("gpus", "links", "experts"))
    assert huge.tables["layers"].drop("capacity_used").equals(none.tables["layers"].drop("capacity_used"))
    assert huge.summary["seconds_saved_by_dropping"] == 0
    assert huge.summary["drop_rate"] == huge.summary["fully_dropped"] == 0


@pytest.mark.parametrize("network", ["fluid", "bound"])
def test_law_33_one_gpu_has_no_traffic(network):
    result = run("topology.nodes=1", "topology.gpus_per_node=1", f"network={network}")
    s = result.summary
    assert s["nvlink_bytes"] == s["nic_bytes"] == s["exposed_comm_s"] == s["wait_s"] == 0
    assert s["step_s"] == s["compute_s"] > 0
    assert s["bottleneck"] is None
    assert not result.tables["links"]["busy_s"].sum()
    assert not result.tables["gpus"]["comm_busy_s"].sum()


def test_law_33_without_compute_a_step_is_communication_alone():
    s = run("compute=none").summary
    assert s["compute_s"] == 0
    assert s["exposed_comm_s"] == s["step_s"] > 0
    assert s["step_s"] < run().summary["step_s"]
    still = run("compute=none", "topology.nodes=1", "topology.gpus_per_node=1").summary
    assert still["step_s"] == 0
    assert still["tokens_per_s"] is None


def test_bound_is_no_slower_to_end_than_fluid_for_one_layer():
    alone = ["model.n_layers=1", "compute=none", "topology=ideal_rail", "exchange=direct"]
    assert run(*alone, "network=bound").summary["step_s"] <= run(*alone).summary["step_s"] * (1 + 1e-9)


def test_a_capacity_factor_keeps_at_least_what_a_smaller_one_keeps():
    rates = [run(f"capacity.factor={factor}").summary["drop_rate"] for factor in (0.25, 0.5, 1.0, 2.0, 8.0)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > 0.5
    assert rates[-1] == 0


def test_seconds_saved_by_dropping_is_the_dropless_step_less_this_one():
    dropping, dropless = run("capacity.factor=0.5").summary, run().summary
    assert dropping["seconds_saved_by_dropping"] == dropless["step_s"] - dropping["step_s"]
    assert dropping["seconds_saved_by_dropping"] > 0
    assert dropless["seconds_saved_by_dropping"] == 0


def test_a_token_that_loses_all_its_choices_is_counted():
    """32 tokens x 4 balanced choices, one place per expert: tokens 0 to 7 of a GPU keep all of theirs, the others none."""
    result = run("trace=balanced", "capacity.factor=0.25", "capacity.drop=position")
    assert result.summary["drop_rate"] == 0.75
    assert result.summary["fully_dropped"] == 0.75


def test_what_is_dropped_on_arrival_has_crossed_the_wire_and_does_not_come_back():
    early, late, none = (run("exchange=direct", *o) for o in (
        ["capacity.factor=0.5"], ["capacity.factor=0.5", "capacity.where=expert"], []
    ))  # fmt: skip
    assert late.tables["experts"].equals(early.tables["experts"]), "where does not change who is dropped"
    links = [result.tables["links"] for result in (early, late, none)]
    assert links[1]["dispatch_bytes"].equals(links[2]["dispatch_bytes"])
    assert links[1]["combine_bytes"].equals(links[0]["combine_bytes"])
    assert links[0]["dispatch_bytes"].sum() < links[1]["dispatch_bytes"].sum()
    assert early.summary["step_s"] < late.summary["step_s"] < none.summary["step_s"]


PADDED = ["exchange=direct", "trace=sampled", "placement.slots=32", "capacity.factor=1.25", "capacity.pad=true"]


def test_padded_buffers_take_the_same_time_whatever_the_router_does():
    """32 tokens, top-4, 32 experts: 5 places each; every layer sends 32 * 5 rows from every GPU and computes as many."""
    one, other = run(*PADDED), run(*PADDED, "seed=1")
    assert not one.tables["experts"].equals(other.tables["experts"])
    assert one.summary["step_s"] == other.summary["step_s"]
    for result in (one, other):
        s, model = result.summary, compose(SMALL).model
        assert s["padding_computed_rows"] == 2 * 8 * 32 * 5 - result.tables["experts"]["kept"].sum()
        everything = 2 * 8 * 7 * 4 * 5 * (model.dispatch_token_bytes + model.combine_token_bytes)
        assert s["nvlink_bytes"] + s["nic_bytes"] == pytest.approx(everything)
        assert result.tables["gpus"]["expert_s"].n_unique() <= 2, "every GPU computes as long as any other"


def test_seconds_saved_are_counted_against_dropless_without_padding():
    dropless, padded, full = run(*PADDED[:3]), run(*PADDED), run(*PADDED[:3], "capacity.pad=true")
    assert padded.summary["seconds_saved_by_dropping"] == dropless.summary["step_s"] - padded.summary["step_s"]
    assert full.summary["seconds_saved_by_dropping"] == dropless.summary["step_s"] - full.summary["step_s"] < 0
    assert full.summary["drop_rate"] == 0


def test_padding_on_arrival_costs_compute_alone():
    plain, padded = run("trace=sampled"), run("trace=sampled", "capacity.pad_multiple=128", "capacity.where=expert")
    assert padded.tables["links"]["dispatch_bytes"].equals(plain.tables["links"]["dispatch_bytes"])
    rows = padded.tables["experts"].select(pl.col("kept") + pl.col("padding_rows")).to_series()
    assert (rows % 128 == 0).all()
    assert padded.summary["padding_sent_bytes"] == 0
    assert padded.summary["compute_s"] > plain.summary["compute_s"]


@pytest.mark.parametrize(("drop", "first"), [("reroute", "position"), ("no_token_left_behind", "choice_major")])
def test_rerouting_needs_scores_and_loses_no_more_than_dropping(drop, first):
    sampled = ["trace=sampled", "capacity.factor=0.75"]
    dropped, moved = run(*sampled, f"capacity.drop={first}").summary, run(*sampled, f"capacity.drop={drop}").summary
    assert moved["drop_rate"] < dropped["drop_rate"]
    assert moved["fully_dropped"] <= dropped["fully_dropped"]
    assert moved["gate_mass_lost"] < dropped["gate_mass_lost"]
    assert moved["rerouted_rate"] > 0 == dropped["rerouted_rate"]
    with pytest.raises(InputError, match=rf"^capacity\.drop={drop}: the trace has no router scores"):
        run("capacity.factor=0.75", f"capacity.drop={drop}")


def test_renormalised_weights_lose_only_what_whole_tokens_lose():
    raw, scaled = (run("trace=sampled", "capacity.factor=0.5", f"capacity.renormalise={x}").summary for x in ("false", "true"))
    assert raw["gate_mass_dropped"] == raw["gate_mass_lost"] == scaled["gate_mass_dropped"]
    assert scaled["gate_mass_lost"] < raw["gate_mass_lost"]


def test_the_capacity_of_a_gpu_is_kept_with_replicas_too():
    """Factor 1: no GPU computes more than the mean, whichever replica a token goes to."""
    result = run("capacity=deepseek_v2", "capacity.protect=0", "placement.slots=64")
    assert result.tables["gpus"]["expert_tokens"].max() == 32 * 4
    assert result.summary["drop_rate"] > 0


def test_dropping_draws_the_same_for_a_layer_whatever_is_played_after_it():
    random = ["capacity.factor=0.5", "capacity.drop=random", "model.n_layers=3"]
    lost = [run(*o).tables["layers"]["gate_mass_lost"].to_list() for o in (random, random[:-1], [*random, "seed=1"])]
    assert lost[0][:2] == lost[1]
    assert len(set(lost[0])) == 3
    assert not set(lost[0]) & set(lost[2]), "another seed draws others"


def test_wrong_values_are_refused_as_on_the_command_line():
    with pytest.raises(InputError, match=r"^placement\.slots=16: fewer slots"):
        run("placement.slots=16")
    with pytest.raises(InputError, match=r"^trace\.alpha=x: must be a number or null$"):
        run("trace=sampled", "trace.alpha=x")
    with pytest.raises(InputError, match=r"^trace\.name=other"):
        run("trace.name=other")
    with pytest.raises(InputError, match=r"^compute=fast"):
        run("compute.name=fast")


# ---- a closed form


@pytest.mark.parametrize("gpus", [16, 32, 64])
@pytest.mark.parametrize("network", ["bound", "fluid"])
def test_balanced_tokens_on_ideal_rails_take_what_the_ports_need(gpus, network):
    """p bytes to every other GPU: 7 p over NVLink, (N - 8) p over the NIC; everything else is non-blocking."""
    result = cs.simulate(
        [
            "model=deepseek_v3", "model.n_layers=5", "topology=ideal_rail", f"topology.nodes={gpus // 8}", f"network={network}",
            "exchange=direct", "trace=balanced", "compute=none", "workload.tokens_per_gpu=64",
        ]
    )  # fmt: skip
    assert result.summary["slots"] == 256
    p = 64 * 8 * 7168 * (1 + 4 / 128) / gpus
    seconds = max(7 * p / 450e9, (gpus - 8) * p / 50e9)
    layers = result.tables["layers"].filter(pl.col("dropped").is_not_null())
    assert layers.height == 2
    np.testing.assert_allclose(layers["dispatch_max_s"], seconds, rtol=1e-9)
    combine = seconds * 2 / (1 + 4 / 128)
    np.testing.assert_allclose(layers["combine_max_s"], combine, rtol=1e-9)
    np.testing.assert_allclose(layers["over_bound"], 1, rtol=1e-9)
    if network == "bound":
        np.testing.assert_allclose(layers["dispatch_s"], seconds, rtol=1e-9)
        np.testing.assert_allclose(layers["wait_s"], 0, atol=1e-12)
    assert result.summary["step_s"] == pytest.approx(2 * (seconds + combine), rel=1e-9)
    assert result.summary["imbalance"] == pytest.approx(1)


# ---- counts only

COUNTED = [
    "model=deepseek_v2_lite", "model.n_layers=3", "trace=sampled", "exchange=direct", "placement.slots=64", "topology.nodes=2"
]  # fmt: skip


def test_counts_alone_give_the_same_run_as_the_tokens_they_count():
    """Where nothing asks for single tokens; every GPU of 16 has one sequence, fewer than are counted one by one."""
    for sequence in (128, 20):
        keys = [*COUNTED, "workload.tokens_per_gpu=64", f"trace.sequence={sequence}"]
        tokens, counts = cs.simulate([*keys, "trace.counts=false"]), cs.simulate([*keys, "trace.counts=true"])
        assert tokens.run_id != counts.run_id
        for table in ("layers", "gpus", "links", "experts"):
            columns = [name for name in tokens.tables[table].columns if "gate_mass" not in name]
            assert tokens.tables[table].select(columns).equals(counts.tables[table].select(columns)), table


@pytest.mark.parametrize(("override", "said"), [
    ("exchange=node_dedup", "exchange=node_dedup: needs single tokens.* use exchange=direct or .*trace.counts=false"),
    ("capacity.factor=1.0", "capacity: a limit or padding needs single tokens"),
    ("capacity.pad_multiple=16", "capacity: a limit or padding needs single tokens"),
    ("placement.slots=128", "placement.slots=128: choosing among replicas of 64 experts needs single tokens"),
    ("router=top_k", "router=top_k: needs single tokens"),
])  # fmt: skip
def test_what_needs_tokens_is_refused_where_there_are_only_counts(override, said):
    with pytest.raises(InputError, match=said):
        cs.simulate([*COUNTED, "trace.counts=true", override])


def test_a_run_from_a_parameters_file_depends_on_what_is_in_it(tmp_path):
    text = (PACKAGE / "workload" / "data" / "presets" / "moderate.yaml").read_text()
    runs = []
    for topic in ("0.1", "0.2"):
        (tmp_path / "p.yaml").write_text(text.replace("topic: 0.1", f"topic: {topic}"))
        runs.append(cs.simulate([*COUNTED, "network=bound", f"trace.parameters={tmp_path}/p.yaml"]))
    assert runs[0].run_id != runs[1].run_id
    assert not runs[0].tables["experts"].equals(runs[1].tables["experts"])


@pytest.mark.parametrize(
    "more", [["exchange=node_dedup"], ["exchange=pxn", "network=bound"], ["schedule=chunked", "exchange=direct"]], ids=str
)
def test_a_machine_of_twice_the_rates_and_half_the_latencies_takes_half_the_time(more):
    """No constant in seconds is left where computing is a roofline and no kernel is priced."""
    twice = [
        "topology.gpu.bf16=1978.8 TFLOP/s", "topology.gpu.fp8=3957.8 TFLOP/s", "topology.gpu.memory_bandwidth=6.7 TB/s",
        "topology.nvlink.bandwidth=900 GB/s", "topology.nvlink.achievable=783.8 GB/s", "topology.nvlink.latency=468.125 ns",
        "topology.nic.bandwidth=800Gb/s", "topology.nic.latency=1.4us",
    ]  # fmt: skip
    whole, half = (fresh("compute=roofline", *more, *machine).tables["gpus"] for machine in ([], twice))
    for name in whole.columns:
        if name.endswith("_s"):
            assert whole[name].to_numpy() == pytest.approx(2 * half[name].to_numpy(), rel=1e-6, abs=1e-12), name


def test_layers_that_repeat_the_trace_s_are_dropped_from_by_draws_of_their_own():
    """Six layers fill eight: 6 and 7 ask for what 0 and 1 do. Dropless they do the same; by lot others lose."""
    plain = run("model.n_layers=8").tables["experts"]
    drawn = run("model.n_layers=8", "capacity.factor=0.5", "capacity.drop=random").tables["layers"]
    assert plain.filter(pl.col("layer") == 6)["kept"].equals(plain.filter(pl.col("layer") == 0)["kept"])
    assert drawn["dropped"][0] == drawn["dropped"][6], "as many, whoever they are"
    assert drawn["fully_dropped_tokens"][0] != drawn["fully_dropped_tokens"][6]
