"""Lists of a sweep's jobs: what is written is read, shards are one sweep, what is none is refused."""

import os

import pytest

from clustersim import InputError
from clustersim.results.manifests import Planned, manifest_file, newest_manifest, read_manifest, write_manifest

ASKED = ["network=bound", "seed=0,1,2", "placement=größer"]
JOBS = [
    Planned(overrides=("network=bound", "seed=0"), run_id="0123456789ab"),
    Planned(overrides=("network=bound", "seed=1"), reason='seed: "no"\nsuch thing'),
    Planned(overrides=("network=bound", "seed=2")),
]


def test_what_is_written_is_read(tmp_path):
    file = manifest_file(tmp_path, ASKED, None)
    write_manifest(file, ASKED, "what three seeds do", JOBS)
    found = read_manifest(file)
    assert (list(found.asked), found.question, list(found.jobs)) == (ASKED, "what three seeds do", JOBS)
    assert not found.whole, "one job has neither a folder nor a reason"
    assert found.changed == file.stat().st_mtime_ns
    before = file.read_bytes()
    write_manifest(file, ASKED, "what three seeds do", JOBS)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [file.name], "nothing temporary is left"


def test_shards_are_one_sweep(tmp_path):
    known = [JOBS[0], Planned(overrides=JOBS[1].overrides, run_id="11"), Planned(overrides=JOBS[2].overrides, run_id="22")]
    for i in (1, 2, 3):
        file = manifest_file(tmp_path, ASKED, f"{i}/3")
        mine = [job if at % 3 == i - 1 else Planned(overrides=job.overrides) for at, job in enumerate(known)]
        write_manifest(file, ASKED, "", mine)
        os.utime(file, ns=(i, i))
    for i in (1, 2, 3):
        found = read_manifest(manifest_file(tmp_path, ASKED, f"{i}/3"))
        assert list(found.jobs) == known
        assert found.whole
        assert found.changed == 3
    assert newest_manifest(tmp_path).file.name.endswith("-3of3.json")
    write_manifest(other := manifest_file(tmp_path, ["seed=0,1"], None), ["seed=0,1"], "", JOBS[:1])
    assert newest_manifest(tmp_path).file == other
    assert list(newest_manifest(tmp_path).jobs) == JOBS[:1], "another sweep's shards are not its own"


def test_without_a_sweep_there_is_none(tmp_path):
    assert newest_manifest(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"overrides": [], "jobs": [1]}', "\x00", '{"jobs": null, "overrides": []}'])
def test_what_is_no_list_of_jobs_is_refused_by_name(tmp_path, text):
    (tmp_path / "sweep-0.json").write_text(text)
    with pytest.raises(InputError, match=r"sweep-0\.json: tells of no sweep"):
        read_manifest(tmp_path / "sweep-0.json")
