"""Reading comprehension without a model: finds the sentence of a text that answers a question, and the span in it.

Pure and deterministic. Rarity-weighted words shared with the question rank the sentences; the kind of question (who,
when, how many, ...) chooses the span.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from dspool.programs.sizes import remembered

MAX_TEXT = 200_000
"""Longest text in characters; the engine ignores the rest."""
MAX_QUESTION = 2_000
"""Longest question in characters."""

_WORD = re.compile(r"\w+(?:[-'’.]\w+)*")
_SENTENCE_END = re.compile(r"(?<=[.!?。])[\"'”)]*\s+|\n+")
_ABBREVIATION = re.compile(r"\b(?:Dr|Mr|Mrs|Ms|St|Prof|Jr|Sr|vs|etc|e\.g|i\.e|[A-Z])\.$")
_NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")
_MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
_DATE = re.compile(
    rf"\b(?:(?:\d{{1,2}} )?(?:{_MONTHS})(?: \d{{1,2}})?(?:,? \d{{4}})?|\d{{4}}-\d{{2}}-\d{{2}}|(?:1\d|20)\d{{2}}s?"
    r"|\d{1,2}:\d{2}|\d+(?:st|nd|rd|th) century|(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day)\b"
)
_AMOUNT = re.compile(r"[$€£]?-?\d+(?:,\d{3})*(?:\.\d+)?(?:\s?%|\s(?:percent|million|billion|thousand|\w+))?")
_NAME = re.compile(
    r"\b[A-Z][\w'’-]*(?:(?<= [A-Z])\.)?(?: (?:(?:of|the|de|van|von|da|du|la|le) )*[A-Z][\w'’-]*(?:(?<= [A-Z])\.)?)*"
)
_AGENT = re.compile(rf"\bby (?:the )?({_NAME.pattern})")
_DEFINITION = re.compile(r"\b(?:is|are|was|were) ((?:an?|the) [^.;,]+)", re.IGNORECASE)
_PLACE = re.compile(rf"\b(?:in|at|from|near|to|on|into|of)\s+(?:the\s+)?({_NAME.pattern})")
_REASON = re.compile(r"\b(?:because|since|due to|so that|in order to|thanks to)\b.*", re.IGNORECASE)
_NEGATION = re.compile(r"\b(?:not|no|never|none|n't|without|cannot)\b|n't\b", re.IGNORECASE)

_PRONOUN = re.compile(r"(?:It|Its|He|She|His|Her|They|Their|This|These)\b")
_WHY = re.compile(r"\bwhy\b", re.IGNORECASE)
_WHEN = re.compile(r"\bwhen\b|\bwhat (?:year|date|day|time|month|century)\b|\bwhich year\b", re.IGNORECASE)
_HOW_MANY = re.compile(
    r"\bhow (?:many|much|old|tall|long|far|high|big|large|fast|heavy|deep|wide)\b", re.IGNORECASE
)
_HOW = re.compile(r"\bhow\b", re.IGNORECASE)
_WHO = re.compile(r"\bwho(?:m|se)?\b", re.IGNORECASE)
_WHERE = re.compile(r"\bwhere\b", re.IGNORECASE)
_ANSWER_FORMS = ((_WHY, _REASON), (_WHEN, _DATE), (_HOW_MANY, _AMOUNT), (_WHO, _NAME), (_WHERE, _PLACE))

_STOP = frozenset(
    re.findall(
        r"\w+",
        "a an the and or but of in on at to from by for with as is are was were be been being am do does did has have "
        "had it its this that these those there here he she they we you i his her their our your what which who whom "
        "whose when where why how many much long old far can could will would shall should may might must not no if "
        "than then so into about over under between",
    )
)


class Passage(NamedTuple):
    sentence: str
    score: float
    """0 when nothing of the question occurs in the text."""


def words(text: str) -> list[str]:
    """The content words of `text`, lower case, crudely stemmed."""
    return [_stem(w) for w in (m.group().lower() for m in _WORD.finditer(text)) if w not in _STOP]


def best_passage(question: str, text: str) -> Passage:
    """The sentence of `text` that shares most with `question`; the earlier one on a tie.

    A sentence that holds the kind of thing the question asks for (a date for when, a number for how many) counts more.
    """
    sentences, bags, antecedents, rarity = _index(text[:MAX_TEXT])
    question_words = set(words(question))
    pattern = next((form for kind, form in _ANSWER_FORMS if kind.search(question)), None)
    best, best_score = "", 0.0
    for sentence, bag, antecedent in zip(sentences, bags, antecedents, strict=True):
        overlap = question_words & bag
        if overlap or question_words & antecedent:
            score = sum(rarity[w] for w in overlap) + 0.6 * sum(
                rarity[w] for w in question_words & antecedent
            )
            score /= 1.0 + 0.01 * len(bag)
            if pattern is not None and _first_new(pattern, question_words, sentence):
                score *= 1.6
            if score > best_score:
                best, best_score = sentence, score
    if not best and sentences:
        best = sentences[0]
    return Passage(best, best_score)


def short_answer(question: str, text: str) -> str:
    """The shortest span of `text` that answers `question`; empty when `text` is empty."""
    passage = best_passage(question, text)
    return span(question, passage.sentence) if passage.sentence else ""


def span(question: str, sentence: str) -> str:
    """The part of `sentence` that `question` asks for, else the sentence without what the question already says."""
    asked = set(words(question))
    if _WHY.search(question):
        reason = _REASON.search(sentence)
        return _trim(reason.group()) if reason else sentence
    if _WHEN.search(question):
        return _first_new(_DATE, asked, sentence) or sentence
    if _HOW_MANY.search(question):
        return _first_new(_AMOUNT, asked, sentence) or sentence
    if _HOW.search(question):
        return sentence
    if _WHO.search(question):
        return _first_new(_AGENT, asked, sentence) or _first_new(_NAME, asked, sentence) or sentence
    if _WHERE.search(question):
        return _first_new(_PLACE, asked, sentence) or _first_new(_NAME, asked, sentence) or sentence
    definition = _DEFINITION.search(sentence)
    if definition is not None and _has_same_words(question, sentence[: definition.start()]):
        # "What is X?" and the sentence says "X is a ...".
        return _trim(definition[1])
    return _rest(question, sentence)


def numbers(text: str) -> list[float]:
    """All numbers of `text`, in order, but for those that are too large to be sent."""
    found = (float(m.group().replace(",", "")) for m in _NUMBER.finditer(text[:MAX_TEXT]))
    return [number for number in found if abs(number) < 2**63]


def names(text: str) -> list[str]:
    """Runs of capitalised words, without those that only start a sentence."""
    runs = [_trim(m.group()) for m in _NAME.finditer(text)]
    return [n for n in dict.fromkeys(runs) if n.lower() not in _STOP]


def says_yes(question: str, text: str) -> bool:
    """Whether the best passage supports `question`: most of its words occur, with as many negations."""
    passage = best_passage(question, text)
    question_words = set(words(question))
    if not question_words or not passage.score:
        return False
    coverage = len(question_words & set(words(passage.sentence))) / len(question_words)
    contradicts = bool(_NEGATION.search(passage.sentence)) != bool(_NEGATION.search(question))
    return coverage >= 0.5 and not contradicts


def closest(options: list[str], text: str) -> int:
    """The index of the option that `text` supports best (the first one when none is)."""
    lower = text.lower()
    bag = set(words(text))
    scores = []
    for option in options:
        plain = str(option).replace("_", " ").lower()
        option_words = set(words(plain))
        exact = 2.0 if plain and _occurs(plain, lower) else 0.0
        scores.append(exact + (len(option_words & bag) / len(option_words) if option_words else 0.0))
    return max(range(len(options)), key=lambda i: (scores[i], -i))


def _occurs(part: str, text: str) -> bool:
    """Whether `part` stands in `text` by itself, not within longer words."""
    at = text.find(part)
    while at >= 0:
        end = at + len(part)
        if not (_is_word(text[at - 1 : at]) or _is_word(text[end : end + 1])):
            return True
        at = text.find(part, end)
    return False


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def sentences_of(text: str) -> list[str]:
    """The sentences of `text`, stripped, none empty."""
    parts: list[list[str]] = []
    for part in _SENTENCE_END.split(text):
        piece = part.strip()
        if not piece:
            continue
        # Only the end of the last piece: a text may be one abbreviation after the other.
        if parts and _ABBREVIATION.search(parts[-1][-1][-8:]):
            parts[-1].append(piece)
        else:
            parts.append([piece])
    return [" ".join(pieces) for pieces in parts]


@remembered(64, longest=20_000)
def _index(text: str) -> tuple[list[str], list[frozenset[str]], list[frozenset[str]], dict[str, float]]:
    """Sentences, their words, the words a pronoun at their start stands for (the one before), each word's rarity."""
    sentences = sentences_of(text)
    bags = [frozenset(words(s)) for s in sentences]
    counts: dict[str, int] = {}
    for bag in bags:
        for word in bag:
            counts[word] = counts.get(word, 0) + 1
    total = len(bags)
    rarity = {w: math.log(1.0 + (total - n + 0.5) / (n + 0.5)) + 0.1 for w, n in counts.items()}
    nothing: frozenset[str] = frozenset()
    antecedents = [
        bags[i - 1] - bags[i] if i and _PRONOUN.match(sentence) else nothing
        for i, sentence in enumerate(sentences)
    ]
    return sentences, bags, antecedents, rarity


def _stem(word: str) -> str:
    for ending in ("ing", "ies", "ed", "es", "s"):
        if len(word) > len(ending) + 3 and word.endswith(ending):
            return word[: -len(ending)] + ("y" if ending == "ies" else "")
    return word


def _repeats(part: str, question_words: set[str]) -> bool:
    part_words = set(words(part))
    return bool(part_words) and part_words <= question_words


def _has_same_words(question: str, part: str) -> bool:
    question_words = set(words(question))
    return bool(question_words) and question_words == set(words(part))


def _first_new(pattern: re.Pattern[str], question_words: set[str], sentence: str) -> str:
    """The first match (its group, if it has one) that does not merely repeat the question."""
    for match in pattern.finditer(sentence):
        part = _trim(match[1] if pattern.groups else match[0])
        if part and part.lower() not in _STOP and not _repeats(part, question_words):
            return part
    return ""


def _rest(question: str, sentence: str) -> str:
    """The longest run of words in `sentence` that the question does not contain."""
    question_words = set(words(question))
    best: tuple[float, str] = (0.0, "")
    for start, end, content in _runs(question_words, sentence):
        part = _trim(sentence[start:end])
        # Questions ask for names and numbers; a long run is rather the rest of the story.
        weight = (
            min(content, 4) + 1.5 * bool(_NAME.match(part)) + 1.0 * bool(_NUMBER.match(part)) - 0.1 * content
        )
        if part and weight > best[0]:
            best = (weight, part)
    return best[1] or sentence


def _runs(question_words: set[str], sentence: str) -> list[tuple[int, int, int]]:
    runs: list[tuple[int, int, int]] = []
    start, end, content = -1, -1, 0
    for match in _WORD.finditer(sentence):
        word = match.group().lower()
        if word in _STOP and content == 0:
            continue
        if word not in _STOP and _stem(word) in question_words:
            if content:
                runs.append((start, end, content))
            start, content = -1, 0
            continue
        if start < 0:
            start = match.start()
        if word not in _STOP:
            content += 1
            end = match.end()
    if content:
        runs.append((start, end, content))
    return runs


def _trim(text: str) -> str:
    return text.strip().strip('.,;:!?()[]"“”').strip()
