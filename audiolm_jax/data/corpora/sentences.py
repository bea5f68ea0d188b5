"""Texts of the synthetic corpus: digit strings and filled sentence templates, lower case, no punctuation.

Which split a text belongs to is a stable hash of the text itself. So the splits cannot share a text, and neither
can two corpora of different seeds, sizes or voices: none tests on a text that another one trains on.
"""

import hashlib
import re

import numpy as np

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

_SHARES = (("train", 0.76), ("valid", 0.08), ("test", 0.08), ("unseen", 0.08))

_WORDS = {
    "name": "alice anna arthur ben carol charles daniel david emma frank george grace hannah henry jack james jane "
    "john julia kate laura lucy maria mark martin mary michael nancy oliver paul peter rachel robert rose ruth "
    "sam sarah simon susan thomas victor walter".split(),
    "person": "doctor teacher farmer driver painter baker lawyer singer sailor soldier nurse student writer king "
    "neighbour brother sister mother father uncle".split(),
    "adjective": "old young tall small quiet happy angry clever famous tired hungry brave gentle lonely rich poor "
    "strange cheerful".split(),
    "verb": "bought sold found lost painted carried dropped cleaned wanted borrowed received ordered collected "
    "counted washed brought offered".split(),
    "colour": "red blue green yellow black white brown orange purple golden silver pink grey".split(),
    "things": "apples books bottles boxes candles chairs coats cups flowers horses keys lamps letters mirrors "
    "oranges pictures plates ribbons shoes stones tables tickets umbrellas watches".split(),
    "thing": "basket bicycle blanket bridge camera castle garden guitar hammer jacket kettle ladder machine "
    "newspaper package piano pocket ring ship suitcase telephone violin wagon window".split(),
    "place": "the market the station the river the village the school the church the museum the forest the harbour "
    "the kitchen the library the mountain the office the theatre".split(),
    "city": "london paris berlin madrid dublin boston chicago vienna moscow oslo lisbon denver athens venice".split(),
    "day": "monday tuesday wednesday thursday friday saturday sunday".split(),
    "month": "january february march april may june july august september october november december".split(),
    "number": "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety".split(),
    "ordinal": "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split(),
    "animal": "bird cat dog fox goat lion mouse rabbit snake tiger wolf donkey spider turtle".split(),
    "motion": "ran walked jumped flew crawled slipped wandered hurried marched sailed".split(),
    "way": "across behind beside over under around through towards past".split(),
    "weather": "cold warm wet cloudy sunny windy foggy stormy".split(),
    "manner": "slowly quickly quietly loudly carefully suddenly gladly badly".split(),
    "please": "please call,please ask,never trust,always help,do not follow,go and visit,try to find".split(","),
    "topic": "the meeting,the weather,the concert,the dinner,the journey,the wedding,the picture,the money".split(","),
}
_WORDS["place"] = ["the " + noun for noun in _WORDS["place"] if noun != "the"]

_TEMPLATES = (
    "{name} {verb} {number} {colour} {things} on {day}",
    "the {adjective} {person} {verb} a {colour} {thing} in {city}",
    "{please} {name} about {topic} before {day}",
    "a {adjective} {animal} {motion} {manner} {way} {place}",
    "it will be {weather} in {city} on the {ordinal} of {month}",
    "my {person} left the {thing} {way} {place}",
    "{number} {things} cost {number} dollars in {city}",
    "did {name} see the {colour} {animal} {way} {place}",
    "{name} and {name} {motion} {way} {place} {manner}",
    "the {ordinal} {thing} was {colour} and the {ordinal} was {colour}",
)


def split_of(text: str) -> str:
    """The split a text belongs to, from a hash of the text alone."""
    position = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
    for split, share in _SHARES:
        if position < share:
            return split
        position -= share
    return _SHARES[-1][0]


def _digits(rng: np.random.Generator) -> str:
    return " ".join(DIGITS[digit] for digit in rng.integers(0, 10, rng.integers(3, 7)))


def _template(rng: np.random.Generator) -> str:
    text = _TEMPLATES[rng.integers(len(_TEMPLATES))]
    while "{" in text:
        slot = text[text.index("{") : text.index("}") + 1]
        choices = _WORDS[slot[1:-1]]
        text = text.replace(slot, choices[rng.integers(len(choices))], 1)
    return re.sub(r"\ba (?=[aeiou])", "an ", text)


LEVELS = {"digits": _digits, "templates": _template}


def texts(level: str, split: str, count: int, rng: np.random.Generator) -> list[str]:
    """`count` texts of a split, without repetition where the level has enough different ones."""
    draw = LEVELS[level]
    chosen: list[str] = []
    seen: set[str] = set()
    misses = 0
    while len(chosen) < count:
        text = draw(rng)
        if split_of(text) != split:
            continue
        if text in seen and misses < 1000:  # many misses in a row: the level is exhausted, allow repetition
            misses += 1
            continue
        misses = 0
        seen.add(text)
        chosen.append(text)
    return chosen


def words(level: str) -> tuple[str, ...]:
    """Every word a text of this level can contain, sorted."""
    if level == "digits":
        return tuple(sorted(DIGITS))
    phrases = [phrase for choices in _WORDS.values() for phrase in choices]
    phrases += ["".join(part.split("}")[-1] for part in template.split("{")) for template in _TEMPLATES]
    return tuple(sorted({word for phrase in phrases for word in phrase.split()} | {"an"}))
