"""Text that every Python carries, as tokens: the standard library's sources (code) and pydoc's topics (prose). No torch."""

from __future__ import annotations

import os
import random
import re
import sysconfig
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clustersim.types import InputError

Tokens = NDArray[np.int64]

DOMAINS = ("code", "prose")
UNKNOWN, END = 0, 1                             # token ids: a character outside the vocabulary, the end of a document
VOCABULARY = 1024                               # tokens in all

_PIECE = re.compile(r" ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+")
_LONGEST = 16                                   # characters of a token
_ALPHABET = 120                                 # single characters with a token of their own, the most common first
_PARAGRAPH = 60                                 # characters from which a paragraph counts as the same text when it is repeated
_LEFT_OUT = {
    "site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__",    # tests outweigh what they test
    "encodings",                                                                     # character tables
    "pydoc_data",                                                                    # the other domain
}


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Corpus:
    """Two domains of text as token ids, parted by document into what is trained on and what is held out."""

    vocabulary: tuple[str, ...]
    train: Mapping[str, Tokens]                 # domain -> token ids, documents end to end
    held_out: Mapping[str, Tokens]              # domain -> [sequences, length]; no sequence spans two documents
    documents: Mapping[str, tuple[str, ...]]    # domain -> name of the document of each held-out sequence
    sources: Mapping[str, str]                  # domain -> what the text is, in words


def load_corpus(*, seed: int, sequences: int, length: int, train_tokens: int, per_document: int = 8) -> Corpus:
    """Both domains, tokenised; the same for the same seed and Python version.

    Documents (a source file, a topic) are shuffled and held out, whole, until each domain has `sequences` sequences,
    at most `per_document` from one. Topics quote one another, so a paragraph of a held-out document is cut from every
    document that is trained on. Tokens are the pieces (words with the space before them, numbers, punctuation, white
    space) that save most characters in the training text; other pieces are spelt with the longest tokens that fit.

    Args:
        seed: of the shuffle.
        sequences: held-out sequences per domain.
        length: tokens per sequence.
        train_tokens: training tokens wanted per domain; a domain that has fewer gives what it has.
        per_document: most held-out sequences from one document.

    Raises:
        InputError: this Python has no sources or no topics, or too few of them.
    """
    documents = {"code": _standard_library(), "prose": _topics()}
    order = random.Random(seed)
    kept, parted = {}, {}
    for domain in DOMAINS:
        names = sorted(documents[domain])
        order.shuffle(names)
        room = 8 * train_tokens + 16 * sequences * length            # more characters than can be needed
        kept[domain] = {name: documents[domain][name] for name in _up_to(names, documents[domain], room)}
    vocabulary = _vocabulary(kept.values())
    tokens_of = _Encoder(vocabulary)
    for domain in DOMAINS:
        parted[domain] = _part(kept[domain], tokens_of, sequences, length, train_tokens, per_document, domain)
    return Corpus(
        vocabulary=vocabulary,
        train={domain: part[0] for domain, part in parted.items()},
        held_out={domain: part[1] for domain, part in parted.items()},
        documents={domain: part[2] for domain, part in parted.items()},
        sources={
            "code": f"{len(kept['code'])} of {len(documents['code'])} files of the standard library, without its tests",
            "prose": f"{len(kept['prose'])} of {len(documents['prose'])} topics of pydoc_data/topics.py",
        },
    )


def _standard_library() -> dict[str, str]:
    root = Path(sysconfig.get_path("stdlib"))
    texts = {}
    for folder, below, files in os.walk(root):
        below[:] = [name for name in below if name not in _LEFT_OUT]
        for name in files:
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):          # those differ from build to build
                file = Path(folder, name)
                texts[file.relative_to(root).as_posix()] = file.read_text("utf-8", errors="replace")
    if sum(map(len, texts.values())) < 1_000_000:
        raise InputError(f"{root}: holds too few sources of the standard library; capture tiny trains on them")
    return texts


def _topics() -> dict[str, str]:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise InputError("pydoc_data.topics: this Python lacks it; capture tiny trains on its text") from error
    return dict(topics)


def _up_to(names: list[str], texts: Mapping[str, str], characters: int) -> list[str]:
    """The first names whose texts reach that many characters together; all when they do not."""
    total = np.cumsum([len(texts[name]) for name in names])
    return names[: int(np.searchsorted(total, characters)) + 1]


def _vocabulary(domains: Iterable[Mapping[str, str]]) -> tuple[str, ...]:
    """Characters and pieces by what they save; both domains weigh the same."""
    characters: Counter[str] = Counter()
    pieces: Counter[str] = Counter()
    for texts in domains:
        sample = "".join(texts.values())[:400_000]
        characters.update(sample)
        pieces.update(piece for piece in _PIECE.findall(sample) if 1 < len(piece) <= _LONGEST)
    alphabet = [c for c, _ in sorted(characters.items(), key=lambda item: (-item[1], item[0]))[:_ALPHABET]]
    saved = sorted(pieces, key=lambda piece: (-pieces[piece] * (len(piece) - 1), piece))
    return ("<unknown>", "<end>", *alphabet, *saved[: VOCABULARY - 2 - len(alphabet)])


class _Encoder:
    """Text to token ids; remembers how each piece was spelt."""

    def __init__(self, vocabulary: tuple[str, ...]) -> None:
        self.ids = {token: i for i, token in enumerate(vocabulary) if i > END}
        self.spelt: dict[str, list[int]] = {}

    def __call__(self, text: str) -> list[int]:
        tokens: list[int] = []
        for piece in _PIECE.findall(text):
            if (known := self.spelt.get(piece)) is None:
                known = self.spelt[piece] = self._spell(piece)
            tokens += known
        return tokens

    def _spell(self, piece: str) -> list[int]:
        tokens, begin = [], 0
        while begin < len(piece):
            for end in range(min(begin + _LONGEST, len(piece)), begin, -1):
                if (token := self.ids.get(piece[begin:end])) is not None:
                    break
            else:
                token = UNKNOWN
            tokens.append(token)
            begin = end
        return tokens


def _part(
    texts: Mapping[str, str], tokens_of: _Encoder, sequences: int, length: int, train_tokens: int, per_document: int, domain: str
) -> tuple[Tokens, Tokens, tuple[str, ...]]:
    """(training tokens, held-out sequences, document of each); `texts` in the order in which documents are held out."""
    held: list[Tokens] = []
    origin: list[str] = []
    left = iter(texts.items())
    repeated: set[str] = set()
    for name, text in left:
        tokens = tokens_of(text)
        windows = np.array(tokens[: len(tokens) // length * length], np.int64).reshape(-1, length)
        if not len(windows):
            continue
        spread = np.linspace(0, len(windows) - 1, min(per_document, len(windows), sequences - len(held))).astype(int)
        held += list(windows[spread])
        origin += [name] * len(spread)
        repeated |= set(_paragraphs(text))
        if len(held) == sequences:
            break
    train: list[int] = []
    for _, text in left:
        train += [*tokens_of("\n\n".join(p for p in text.split("\n\n") if _key(p) not in repeated)), END]
        if len(train) >= train_tokens:
            break
    if len(held) < sequences or len(train) <= length:
        raise InputError(f"sequences={sequences}: this Python carries too little {domain} for so many of {length} tokens")
    return np.array(train, np.int64), np.stack(held), tuple(origin)


def _key(paragraph: str) -> str:
    return " ".join(paragraph.split())


def _paragraphs(text: str) -> list[str]:
    return [key for p in text.split("\n\n") if len(key := _key(p)) >= _PARAGRAPH]
