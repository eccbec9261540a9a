"""Which jobs a sweep has: `sweep-ID.json` in the folder of its study, so that it is told from what else is there. Runs nothing.

Of a sweep in shards each writes a file of its own, so that none waits for another; read, they are one. A file says nothing
of when and how it was written: the same sweep leaves the same bytes. When it was is the time of the file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clustersim.places import option_files
from clustersim.types import InputError
from clustersim.writing import replacing


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A job of a sweep. Without a run_id it has not been begun, or was not fit to."""

    overrides: tuple[str, ...]
    run_id: str | None = None           # the name of its folder
    reason: str | None = None           # why it failed, where there is no folder that says so


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A sweep."""

    file: Path
    asked: tuple[str, ...]              # its overrides
    question: str                       # what its study asks; empty where it is no study, or asks nothing
    jobs: tuple[Planned, ...]           # in its order
    changed: int                        # when that last happened, in ns

    @property
    def whole(self) -> bool:
        """Whether every job has been run."""
        return all(job.run_id or job.reason for job in self.jobs)


def manifest_file(study: Path, asked: Sequence[str], shard: str | None) -> Path:
    """The file of the sweep that these overrides ask for."""
    name = hashlib.sha256("\n".join(asked).encode()).hexdigest()[:8]
    return study / f"sweep-{name}{'' if shard is None else '-' + shard.replace('/', 'of')}.json"


def question_of(overrides: Sequence[str]) -> str:
    """What the study that these overrides ask for is to find out: the comment after the line that runs it; empty without."""
    asked = dict(text.lstrip("+").partition("=")[::2] for text in overrides)
    own = Path(asked["config_dir"]) if "config_dir" in asked else None
    path = option_files("experiment", own).get(asked.get("experiment", ""))
    lines = path.read_text(encoding="utf-8").splitlines() if path is not None else []
    told = [line.lstrip("# ") for line in lines if line.startswith("#") and not line.startswith(("# @package", "# clustersim "))]
    return told[0] if told else ""


def write_manifest(file: Path, asked: Sequence[str], question: str, jobs: Sequence[Planned]) -> None:
    """Write the file anew, at once."""
    lines = ",\n".join(json.dumps(_told(job), ensure_ascii=False) for job in jobs)
    head = {"overrides": list(asked), "question": question}
    told = ",\n".join(f'"{key}": {json.dumps(value, ensure_ascii=False)}' for key, value in head.items())
    text = f'{{{told},\n"jobs": [\n{lines}\n]}}\n'
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _told(job: Planned) -> dict[str, Any]:
    told = {"overrides": list(job.overrides), "run_id": job.run_id, "reason": job.reason}
    return {key: value for key, value in told.items() if value is not None}


def read_manifest(file: Path) -> Manifest:
    """The sweep that a file tells of; of one in shards, what its other shards tell too.

    Raises:
        InputError: not such a file.
    """
    first, *others = [read_one(path) for path in (file, *(path for path in _shards(file) if path != file))]
    jobs = list(first.jobs)
    for other in others:
        if len(other.jobs) == len(jobs):
            jobs = [mine if mine.run_id or mine.reason else theirs for mine, theirs in zip(jobs, other.jobs, strict=True)]
    changed = max(one.changed for one in (first, *others))
    return Manifest(file=file, asked=first.asked, question=first.question, jobs=tuple(jobs), changed=changed)


def _shards(file: Path) -> list[Path]:
    """The files of the shards of the sweep that this file is of."""
    stem, _, _ = file.stem.removeprefix("sweep-").partition("-")
    return sorted(file.parent.glob(f"sweep-{stem}-*of*.json"))


def read_one(file: Path) -> Manifest:
    """As `read_manifest`, of this file alone."""
    try:
        told, changed = json.loads(file.read_text(encoding="utf-8")), file.stat().st_mtime_ns
        jobs = tuple(
            Planned(overrides=tuple(job["overrides"]), run_id=job.get("run_id"), reason=job.get("reason")) for job in told["jobs"]
        )
        asked, question = tuple(told["overrides"]), str(told.get("question", ""))
        return Manifest(file=file, asked=asked, question=question, jobs=jobs, changed=changed)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: tells of no sweep ({type(error).__name__}: {str(error).splitlines()[0]})") from error


def newest_manifest(study: Path) -> Manifest | None:
    """The sweep of a study that ran last; None where none is told of."""
    files = [(path.stat().st_mtime_ns, path) for path in study.glob("sweep-*.json")]
    return read_manifest(max(files)[1]) if files else None
