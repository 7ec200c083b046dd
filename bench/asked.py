"""What is asked of a generated archive, and what it is for. Pure."""

import bisect
import dataclasses
from collections.abc import Callable

from bench import generated

PAGE = 50
#: A word that a mail has with this chance is in every fourth, which have some 120 words.
_EVERY_FOURTH = 0.0027
_WORDS_OF_A_MAIL = 127
#: Asked also with the number of hits, and with facets.
_SUMMED_UP = frozenset({"word in every fourth mail", "phrase", "from: a domain"})


@dataclasses.dataclass(frozen=True, slots=True)
class Query:
    """A question in ten wordings. `ilike` says which of its words plain ILIKE looks for, `notmuch`
    how notmuch is asked where it is not the same; None: it can't be."""

    name: str
    text: Callable[[int], str]
    sort: str = "-date"
    skipped: int = 0
    as_reader: bool = False
    counted: bool = False
    faceted: bool = False
    notmuch: Callable[[int], str] | None = None
    ilike: Callable[[int], list[str]] | None = None


def queries(messages: int) -> list[Query]:
    """Return what is asked of an archive of so many messages."""
    rare = _rank(20 / messages / _WORDS_OF_A_MAIL)
    fourth = _rank(_EVERY_FOURTH)
    skipped = min(10_000 * PAGE, messages // 2)

    def words(*ranks: int) -> Callable[[int], list[str]]:
        return lambda n: [generated.word(rank + n * min(rank // 100 + 1, 300)) for rank in ranks]

    def joined(*ranks: int) -> Callable[[int], str]:
        return lambda n: " ".join(words(*ranks)(n))

    def sender(first: int) -> Callable[[int], str]:
        return lambda n: f"from:{generated.person(first + n)[0]}"

    def phrase(n: int) -> str:
        return f'"{generated.phrase(20 + n)}"'

    def seldom(n: int) -> str:
        return f'"{joined(60, 90)(n)}"'

    three = joined(80, 150, 400)
    old, old_and_common = generated.OLD, generated.OLD_AND_COMMON
    own = [
        Query("newest page", lambda _: "", notmuch=lambda _: "*"),
        Query(f"page {skipped // PAGE:,}", lambda _: "", skipped=skipped, notmuch=lambda _: "*"),
        Query("folder with ten mails", lambda _: f"in:{generated.SMALL_FOLDER}"),
        Query("rare word", joined(rare), ilike=words(rare)),
        Query("rare and old word", lambda _: old, ilike=lambda _: [old]),
        Query("common, but old word", lambda _: old_and_common, ilike=lambda _: [old_and_common]),
        Query("word in every fourth mail", joined(fourth), ilike=words(fourth)),
        Query("phrase", phrase, ilike=lambda n: [generated.phrase(20 + n)]),
        Query("common words, seldom a phrase", seldom, ilike=lambda n: [joined(60, 90)(n)]),
        Query("from: a person", sender(300)),
        Query("from: a domain", lambda n: f"from:{generated.person(n)[0].partition('@')[2]}"),
        Query(
            "three words and dates",
            lambda n: f"{three(n)} after:2019 before:2021",
            notmuch=lambda n: f"{three(n)} date:2019-01-01..2020-12-31",
            ilike=words(80, 150, 400),
        ),
        Query("label and attachment", lambda n: f'label:"Label {n + 20}" has:attachment'),
    ]
    variants = [
        *(dataclasses.replace(query, as_reader=True) for query in own if not query.skipped),
        *(
            dataclasses.replace(query, sort="date")
            for query in own
            if query.name in {"newest page", "rare word", "word in every fourth mail", "phrase"}
        ),
        *(dataclasses.replace(query, counted=True) for query in own if query.name in _SUMMED_UP),
        *(dataclasses.replace(query, faceted=True) for query in own if query.name in _SUMMED_UP),
    ]
    return own + [
        dataclasses.replace(query, notmuch=None, ilike=None, name=_named(query))
        for query in variants
    ]


def _named(query: Query) -> str:
    if query.as_reader:
        return f"{query.name}, some sources"
    if query.counted:
        return f"{query.name}, counted"
    if query.faceted:
        return f"{query.name}, facets"
    return "eldest page" if query.name == "newest page" else f"{query.name}, eldest first"


def _rank(chance: float) -> int:
    """Return the rank of a word that is this share of all words."""
    return bisect.bisect(range(generated.WORDS - 4_000), -chance, key=lambda r: -generated.share(r))
