"""Relevance of messages to a query: weighted words in common."""

from __future__ import annotations

import math
import re

from flowgentic_actors.langGraph.entry import text_of
from flowgentic_actors.langGraph.trimming import Entries, Exchange, exchanges, latest

_WORD = re.compile(r"\w+")
_CONTEXT = 3  # latest exchanges that a selection is filled up with


def relevant(entries: Entries, query: str | None, limit: int) -> Entries:
    """The messages most relevant to a query, best first; deterministic.

    A word counts the more, the fewer messages have it. The sum is weighed with the importance and
    the place in the conversation (the first counts half). If that leaves room, the last few follow,
    in order: what was just said matters whatever it says.

    Args:
        entries: The conversation.
        query: What to look for; without a word in it, the latest messages are given.
        limit: How many; an exchange with tools is given whole, which may be some more.
    """
    wanted = _words(query or "")
    if not wanted:
        return latest(entries, limit)
    found = exchanges(entries)
    scores = _scores(entries, found, wanted)
    order = sorted(range(len(found)), key=lambda at: (-scores[at], -at))
    best = _up_to(limit, [found[at] for at in order if scores[at] > 0])
    recent = [each for each in reversed(found[-_CONTEXT:]) if each not in best]
    recent = _up_to(limit - sum(len(each.places) for each in best), recent)
    return tuple(entries[at] for each in (*best, *reversed(recent)) for at in each.places)


def _scores(entries: Entries, found: list[Exchange], wanted: set[str]) -> list[float]:
    texts = [" ".join(text_of(entries[at].message) for at in each.places) for each in found]
    common = [_words(text) & wanted for text in texts]
    weights = {word: _rarity(sum(word in words for words in common), len(found)) for word in wanted}
    last = max(1, len(entries) - 1)
    return [
        # Sorted, because the order of a set, and so a sum's last bit, differs between processes.
        sum(weights[word] for word in sorted(words))
        * each.importance
        * (0.5 + 0.5 * each.places[-1] / last)
        for each, words in zip(found, common, strict=True)
    ]


def _rarity(having: int, total: int) -> float:
    return math.log(1 + total / having) if having else 0.0


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.casefold()))


def _up_to(limit: int, found: list[Exchange]) -> list[Exchange]:
    """The first exchanges, up to a number of messages."""
    chosen: list[Exchange] = []
    for exchange in found:
        if sum(len(each.places) for each in chosen) >= limit:
            break
        chosen.append(exchange)
    return chosen
