"""`moetrace/1`: what is written is what is read, and every kind of bad file is refused in one line that names it."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clustersim.types import InputError, Trace
from clustersim.workload import trace as trace_module
from clustersim.workload import trace_file, trace_writing
from clustersim.workload.trace import joined, read_rows, read_trace, write_trace
from clustersim.workload.trace_file import open_trace
from clustersim.workload.trace_rules import take
from clustersim.workload.trace_stream import stream, stream_columns
from clustersim.workload.trace_writing import TraceWriter

COLUMNS = ("expert_ids", "gate_weights", "scores", "token_id", "flags", "step", "rank", "seq", "pos", "phase")


def made_up(rng, *, tokens=20, layers=3, experts=8, top_k=2, missing=0.0, weights=True, scores=False, steps=3, extra=False):
    """A valid trace: every token picks distinct experts, some slots perhaps none; rows by step, rank, sequence, position."""
    ids = rng.random((tokens, layers, experts)).argsort(axis=2)[:, :, :top_k].astype(np.int16)
    ids[rng.random(ids.shape) < missing] = -1
    step = np.sort(rng.integers(0, steps, tokens))
    return Trace(
        expert_ids=ids,
        gate_weights=rng.random(ids.shape).astype(np.float16).astype(np.float32) if weights else None,
        scores=rng.normal(size=(tokens, layers, experts)).astype(np.float16).astype(np.float32) if scores else None,
        step=step, rank=np.zeros(tokens, int), seq=step * 2, pos=np.arange(tokens), phase=np.zeros(tokens, np.uint8),
        n_experts=experts, domain={int(s): "prose" for s in step * 2}, meta={"model": "made up"},
        token_id=rng.integers(-1, 2**31, tokens) if extra else None,
        flags=rng.integers(0, 16, tokens).astype(np.uint8) if extra else None,
    )


def write_raw(folder, *, meta=None, drop=(), **columns):
    """A tokens.parquet with one token, two layers of four experts, top-2, in which the caller spoils one thing."""
    described = {"schema": "moetrace/1", "kind": "tokens", "num_layers": 2, "num_experts": 4, "top_k": 2, "ids_dtype": "uint8"}
    described |= meta or {}
    table = {"step": [0], "rank": [0], "seq": [0], "pos": [0], "phase": [0], "expert_ids": [bytes([0, 1, 2, 3])]} | columns
    arrays = {}
    for name, values in table.items():
        if name not in drop:
            is_blob = len(values) and isinstance(values[0], bytes)
            arrays[name] = pa.array(values, pa.binary(len(values[0]))) if is_blob else pa.array(values)
    text = {} if meta == {} else {"moetrace": json.dumps({k: v for k, v in described.items() if v is not None})}
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table(arrays).replace_schema_metadata(text), folder / "tokens.parquet")
    return folder


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 999), tokens=st.integers(1, 40), layers=st.integers(1, 4),
    experts=st.sampled_from([2, 255, 256, 257, 600]), missing=st.sampled_from([0.0, 0.3]),
    weights=st.booleans(), scores=st.booleans(), extra=st.booleans(), cuts=st.lists(st.integers(0, 40), max_size=3),
)
def test_a_trace_read_back_is_the_trace_written(tmp_path, seed, tokens, layers, experts, missing, weights, scores, extra, cuts):
    """Whole or streamed, written at once or in parts, every column; the two files are the same bytes."""
    options = {"experts": experts, "missing": missing, "weights": weights, "scores": scores, "extra": extra}
    before = made_up(np.random.default_rng(seed), tokens=tokens, layers=layers, **options)
    slots = [[*range(experts), seed % experts] for _ in range(layers)]
    before = replace(before, meta=before.meta | {"physical_to_logical": slots})
    write_trace(before, tmp_path)
    after = read_trace(tmp_path)
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name), err_msg=name)
    assert (after.n_experts, after.domain, after.meta["model"]) == (experts, before.domain, "made up")
    assert after.meta["physical_to_logical"] == slots

    streamed = joined(list(stream(tmp_path)), after.domain)
    edges = sorted({0, tokens, *(min(cut, tokens) for cut in cuts)})
    with TraceWriter(tmp_path / "parts") as writer:
        for begin, end in pairwise(edges):
            writer.add(take(before, np.arange(begin, end)))
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(streamed, name), getattr(after, name), err_msg=name)
    assert (tmp_path / "parts" / "tokens.parquet").read_bytes() == (tmp_path / "tokens.parquet").read_bytes()
    assert after.expert_ids.dtype == np.int16
    assert after.meta["missing_ids"] == (before.expert_ids < 0).sum()


def test_ids_take_one_byte_up_to_255_experts_and_two_from_there(tmp_path):
    """255 experts are ids 0..254, which leaves the byte 255 for "no expert"; 256 experts leave none."""
    for experts, name in ((255, "uint8"), (256, "uint16")):
        write_trace(made_up(np.random.default_rng(0), experts=experts), tmp_path / name)
        column = pq.read_schema(tmp_path / name / "tokens.parquet").field("expert_ids")
        assert column.type == pa.binary(3 * 2 * (1 if name == "uint8" else 2))
        assert not column.nullable
        assert read_trace(tmp_path / name).meta["ids_dtype"] == name


def test_one_byte_holds_256_experts_only_when_no_slot_is_empty(tmp_path):
    """Then 255 is an expert; when the metadata does not say so it could be either, and the file is refused."""
    shape = {"num_experts": 256, "expert_ids": [bytes([0, 255, 254, 255])]}
    ids = shape.pop("expert_ids")
    trace = read_trace(write_raw(tmp_path / "full", meta=shape | {"missing_ids": 0}, expert_ids=ids))
    assert trace.expert_ids.tolist() == [[[0, 255], [254, 255]]]
    with pytest.raises(InputError, match="uint8 with 256 experts"):
        read_trace(write_raw(tmp_path / "unsaid", meta=shape, expert_ids=ids))


def test_all_ones_is_no_expert_and_may_stand_in_several_slots(tmp_path):
    trace = read_trace(write_raw(tmp_path, expert_ids=[bytes([255, 255, 3, 255])]))
    assert trace.expert_ids.tolist() == [[[-1, -1], [3, -1]]]


def test_rows_come_back_by_step_rank_sequence_and_position(tmp_path):
    rows = {"step": [1, 0, 0], "rank": [0, 1, 0], "seq": [0, 0, 9], "pos": [0, 0, 5], "phase": [0, 1, 2]}
    trace = read_trace(write_raw(tmp_path, **rows, expert_ids=[bytes([a, 3, a, 3]) for a in (0, 1, 2)]))
    assert trace.expert_ids[:, 0, 0].tolist() == [2, 1, 0]
    assert trace.phase.tolist() == [2, 1, 0]


def test_the_tokens_file_itself_names_the_trace_too(tmp_path):
    write_trace(made_up(np.random.default_rng(0)), tmp_path)
    assert read_trace(tmp_path / "tokens.parquet").domain == read_trace(str(tmp_path)).domain != {}


def test_row_groups_end_where_a_step_ends(tmp_path, monkeypatch):
    """Groups of at most 10: steps of 4, 4, 4 fill 8 then 4; a step of 25 is cut at 10, 20, and its rest takes the next in."""
    monkeypatch.setattr(trace_writing, "ROW_GROUP_TOKENS", 10)
    step = np.repeat([0, 1, 2, 3, 4], [4, 4, 4, 25, 3])
    trace = replace(made_up(np.random.default_rng(0), tokens=40), step=step, seq=step)
    write_trace(trace, tmp_path)
    groups = pq.ParquetFile(tmp_path / "tokens.parquet").metadata
    assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == [8, 4, 10, 10, 8]
    np.testing.assert_array_equal(read_trace(tmp_path).expert_ids, trace.expert_ids)


def test_the_same_trace_is_written_as_the_same_bytes(tmp_path):
    for name in "ab":
        write_trace(made_up(np.random.default_rng(5)), tmp_path / name)
    for file in ("tokens.parquet", "sequences.parquet"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["sequences.parquet", "tokens.parquet"]


def test_reading_a_trace_does_not_import_pyarrow(tmp_path):
    write_trace(made_up(np.random.default_rng(0)), tmp_path)
    code = "import sys, clustersim.workload.trace as t; t.read_trace(sys.argv[1]); sys.exit('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == 0


SPOILED = {     # what is spoilt: (what write_raw is given, what the one line must say)
    "no key": ({"meta": {}}, "has no key 'moetrace'"),
    "next schema": ({"meta": {"schema": "moetrace/2"}}, "schema is 'moetrace/2'; only 'moetrace/1'"),
    "counts": ({"meta": {"kind": "counts"}}, "kind is 'counts'; replaying a trace needs kind 'tokens'"),
    "no top_k": ({"meta": {"top_k": None}}, "metadata top_k is None"),
    "top_k too large": ({"meta": {"top_k": 5}}, "metadata top_k is 5, of 4 experts"),
    "text for a number": ({"meta": {"num_layers": "2"}}, "metadata num_layers is '2'"),
    "strange ids": ({"meta": {"ids_dtype": "int32"}}, "ids_dtype is 'int32'; it must be uint8 or uint16"),
    "no ids": ({"drop": ["expert_ids"]}, "has no column 'expert_ids'"),
    "no step": ({"drop": ["step"]}, "has no column 'step'"),
    "step of floats": ({"step": [0.5]}, "column 'step' is Float64; it must hold whole numbers"),
    "ids as a list": ({"expert_ids": [[0, 1, 2, 3]]}, "column 'expert_ids' is List(Int64); it must be fixed-size binary"),
    "short blob": ({"expert_ids": [bytes([0, 1, 2])]}, "expert_ids holds 3 bytes per token; 4 values of uint8 take 4"),
    "other width": ({"meta": {"ids_dtype": "uint16"}}, "expert_ids holds 4 bytes per token; 4 values of uint16 take 8"),
    "short weights": ({"gate_weights": [bytes(6)]}, "gate_weights holds 6 bytes per token; 4 values of float16 take 8"),
    "short scores": ({"scores": [bytes(6)]}, "scores holds 6 bytes per token; 8 values of float16 take 16"),
    "id too large": ({"expert_ids": [bytes([0, 1, 2, 4])]}, "layer 1, row 0: expert id 4 is out of range; 4 experts are 0..3"),
    "same expert": ({"expert_ids": [bytes([0, 1, 3, 3])]}, "layer 1, row 0: expert 3 is picked twice (slots 0 and 1)"),
    "weight": ({"gate_weights": [np.float16([1, 0, np.nan, 0]).tobytes()]}, "layer 1, row 0: gate weight nan in slot 0"),
    "null": ({"pos": [None]}, "column 'pos' is Null; it must hold whole numbers"),
    "a null": ({"step": [0, 0], "rank": [0, 0], "seq": [0, 0], "pos": pa.array([3, None]), "phase": [0, 0],
                "expert_ids": [bytes([0, 1, 2, 3])] * 2}, "row 1: pos is null"),
    "phase": ({"phase": [4]}, "row 0: phase 4 is none of 0 prefill, 1 decode"),
    "not a number": ({"scores": [np.float16([0] * 7 + [np.nan]).tobytes()]}, "layer 1, row 0: the score of expert 3 is not a"),
    "physical ids": ({"meta": {"ids_kind": "physical"}}, "ids_kind is 'physical'; moetrace/1 holds logical expert ids"),
    "ids as a dict": ({"meta": {"ids_dtype": {}}}, "ids_dtype is {}; it must be uint8 or uint16"),
    "an expert that is not held": ({"meta": {"physical_to_logical": [[0, 1, 2, 3], [0, 1, 2, 2]]}}, "layer 1 holds 3 of 4"),
    "ragged placement": ({"meta": {"physical_to_logical": [[0, 1, 2, 3], [0]]}}, "physical_to_logical must be 2 lists"),
    "no rows": ({name: pa.array([], pa.uint8()) for name in ("step", "rank", "seq", "pos", "phase")}
                | {"expert_ids": pa.array([], pa.binary(4))}, "holds no tokens"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_spoilt_file_is_refused_in_one_line_that_names_it(tmp_path, case):
    spoiled, says = SPOILED[case]
    folder = write_raw(tmp_path, **spoiled)
    with pytest.raises(InputError, match=re.escape(says)) as refused:
        read_trace(folder)
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(f"{folder / 'tokens.parquet'}: ")


def test_an_id_out_of_range_is_named_by_its_row_in_the_file_also_in_a_later_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr(trace_module, "CHUNK_TOKENS", 4)
    rows = {name: list(range(10)) for name in ("step", "rank", "seq", "pos")} | {"phase": [0] * 10}
    ids = [bytes([0, 1, 2, 3])] * 9 + [bytes([0, 1, 9, 3])]
    with pytest.raises(InputError, match=r"layer 1, row 9: expert id 9 is out of range"):
        read_trace(write_raw(tmp_path, **rows, expert_ids=ids))


def test_only_the_rows_that_are_asked_for_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(trace_module, "CHUNK_TOKENS", 4)
    before = made_up(np.random.default_rng(0), tokens=30, scores=True, extra=True)
    write_trace(before, tmp_path)
    rows = np.array([0, 3, 17, 29])
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(read_trace(tmp_path, rows=rows), name), getattr(before, name)[rows], err_msg=name)
    _, columns = read_rows(tmp_path, tokens=7)
    np.testing.assert_array_equal(columns["pos"], before.pos[:7])


def test_a_byte_that_changed_is_found_by_the_checksum(tmp_path):
    """Where the bytes still decompress, nothing else would notice that an expert is another one."""
    write_trace(made_up(np.random.default_rng(0), tokens=500), tmp_path)
    file = tmp_path / "tokens.parquet"
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 3] ^= 1
    file.write_bytes(whole)
    with pytest.raises(InputError, match="its bytes are not those that were written"):
        read_trace(tmp_path)


@pytest.mark.parametrize(("change", "says"), [
    ({"step": np.zeros(20, int)}, r"come after \["),
    ({"n_experts": 9}, "a part with n_experts 9 follows one with 8"),
    ({"gate_weights": None}, "some parts have gate_weights and some have not"),
])
def test_a_part_that_does_not_fit_the_ones_before_is_refused_and_leaves_nothing(tmp_path, change, says):
    part = replace(made_up(np.random.default_rng(0)), step=np.full(20, 5), seq=np.zeros(20, int))

    def write():
        with TraceWriter(tmp_path) as writer:
            writer.add(part)
            writer.add(replace(part, **change))

    with pytest.raises(InputError, match=says):
        write()
    assert not list(tmp_path.iterdir())


def test_compiled_checks_find_what_the_plain_ones_find(tmp_path, monkeypatch):
    """One id is spoilt at a random place; both ways say the same."""
    rng = np.random.default_rng(3)
    for experts, missing in ((8, 0.0), (200, 0.2), (300, 0.2)):
        write_trace(made_up(rng, tokens=50, experts=experts, top_k=3, missing=missing), tmp_path)
        file = open_trace(tmp_path)
        (_, columns), = stream_columns(file, ["expert_ids"])
        raw = columns["expert_ids"].view(file.shape.id_dtype).reshape(-1, 3, 3).copy()
        raw[rng.integers(50), rng.integers(3)] = rng.choice([3, experts + 1])
        said = []
        for limit in (10**9, 0):
            monkeypatch.setattr(trace_file, "COMPILED_FROM", limit)
            with pytest.raises(InputError) as refused:
                trace_file.checked_ids(raw, file.shape, file.path, 7)
            said.append(str(refused.value))
        assert said[0] == said[1]


def test_a_path_without_a_trace_says_what_it_lacks(tmp_path):
    with pytest.raises(InputError, match="absent: no such trace"):
        read_trace(tmp_path / "absent")
    with pytest.raises(InputError, match=r"holds no tokens\.parquet"):
        read_trace(tmp_path)
    (tmp_path / "counts.parquet").write_bytes(b"")
    with pytest.raises(InputError, match=r"counts\.parquet only; replaying a trace needs tokens\.parquet"):
        read_trace(tmp_path)


def test_a_file_that_is_not_parquet_or_is_cut_short_is_told_from_one_that_is_damaged(tmp_path):
    write_trace(made_up(np.random.default_rng(0), tokens=500), tmp_path)
    file = tmp_path / "tokens.parquet"
    whole = file.read_bytes()
    for content, says in (
        (b"", "not a Parquet file"),
        (b"step,rank\n0,0\n", "not a Parquet file: begins with b'step'"),
        (b"PAR1", "truncated Parquet"),
        (whole[:-1], "truncated Parquet"),
        (whole[: len(whole) // 2], "truncated Parquet"),
        (b"PAR1" + bytes(100) + whole[-8:], "damaged Parquet"),
        (whole[:-8] + b"\xff\xff\xff\x7fPAR1", "damaged Parquet"),
    ):
        file.write_bytes(content)
        with pytest.raises(InputError, match=says) as refused:
            read_trace(tmp_path)
        assert "\n" not in str(refused.value)


def test_a_trace_that_breaks_a_rule_is_not_written(tmp_path):
    good = {name: getattr(made_up(np.random.default_rng(0)), name) for name in Trace.__slots__}
    twice = good["expert_ids"].copy()
    twice[7, 2, 1] = twice[7, 2, 0]
    heavy = good["gate_weights"].copy()
    heavy[3, 1, 0] = 1e6                                    # beyond 65504, the largest float16
    empty = {n: good[n][:0] for n in ("expert_ids", "gate_weights", "step", "rank", "seq", "pos", "phase")}
    for change, says in (
        ({"expert_ids": twice}, "layer 2, row 7: expert .* is picked twice"),
        ({"gate_weights": heavy}, "layer 1, row 3: gate weight inf"),
        ({"n_experts": 4}, "is out of range; 4 experts are"),
        ({"n_experts": 1}, "top_k 2 and 1 experts"),
        ({"pos": good["pos"] - 1}, r"pos runs from -1 to 18; it must stay in 0\.\.4294967295"),
        ({"seq": good["seq"][1:]}, r"seq has shape \(19,\)"),
        ({"gate_weights": good["gate_weights"][:, :1]}, "gate_weights"),
        ({"scores": np.zeros((20, 3, 4), np.float32)}, "scores"),
        (empty, "holds no tokens"),
    ):
        with pytest.raises(InputError, match=says):
            write_trace(Trace(**good | change), tmp_path / "out")
        assert not (tmp_path / "out").exists(), "nothing half-written"
