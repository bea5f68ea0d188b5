"""Tables of texts beside recordings: metadata.csv and metadata.tsv.

The first line names the columns (`file_name,transcription`, see columns.py), or there is no such line and the columns
are those of LJSpeech and of its relatives:

    id|text                   a `|` more in a line is part of its text
    id|text|normalised text   the last one counts, where it is there
    id|text|speaker           where the last column repeats few words, or holds numbers, in all lines
    id|speaker|text

Columns are separated by `|`, tabs, commas or semicolons, whichever makes the first column name recordings. Commas and
semicolons have the quotes of CSV. What is none of these is refused by name.
"""

import codecs
import csv
import io
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from audiolm_jax.data.corpora import SPLIT_NAMES, columns, usable_split
from audiolm_jax.data.corpora.manifest import Record
from audiolm_jax.errors import InputError

NAMES = ("metadata.csv", "metadata.tsv")
_SEPARATORS = ("|", "\t", ",", ";")
_LIKE = "name the columns in its first line, such as file_name|text|speaker"

Row = tuple[int, list[str]]  # number of the line, cells; bytes that are not UTF-8 as lone surrogates


def read(path: Path, known: Callable[[str], Any]) -> list[Record]:
    """The lines of a table. known: something true for the name of a recording.

    Raises InputError for a table whose columns are not understood, and for lines that cannot be told apart.
    """
    separator, rows = _rows(path, _decoded(path), known)
    if rows and _is_header(rows[0][1], known):
        return _named(path, separator, rows)
    return _unnamed(path, separator, rows) if rows else []


def _is_header(cells: Sequence[str], known: Callable[[str], Any]) -> bool:
    names = [columns.plain(cell) for cell in cells]
    where = {*columns.PATHS, *columns.IDS}
    told = names[0] in where or (where & set(names) and any(set(group) & set(names) for group in columns.TEXTS))
    return len(cells) > 1 and bool(told) and not known(cells[0])


def _decoded(path: Path) -> str:
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            return data.decode("utf-16")
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not UTF-16, as its byte order mark says (byte {error.start})") from None
    if data.count(0) > len(data) / 4:
        raise InputError(f"{path} is in UTF-16 without a byte order mark, or no text; save it as UTF-8")
    # A line in another encoding must not take the others with it: its recording alone is rejected.
    return data.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")


def _rows(path: Path, text: str, known: Callable[[str], Any]) -> tuple[str, list[Row]]:
    """The separator, as the first line or the names of recordings tell it, and the table in cells."""
    lines = [(number, line) for number, line in enumerate(re.split("\r\n|\r|\n", text), 1) if line.strip()]
    if not lines:
        return "|", []
    header = [s for s in _SEPARATORS if _is_header([_bare(cell) for cell in lines[0][1].split(s)], known)]
    fits = [sum(bool(known(_bare(line.split(s)[0]))) for _, line in lines if s in line) for s in _SEPARATORS]
    if not any(fits):  # it lists other recordings than those that are there
        fits = [sum(s in line for _, line in lines) for s in _SEPARATORS]
    separator = header[0] if header else _SEPARATORS[fits.index(max(fits))]
    if separator in "|\t":
        return separator, [(n, [_unquoted(cell, separator) for cell in line.split(separator)]) for n, line in lines]
    reader, rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True), []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append((reader.line_num, cells))
    except csv.Error as error:
        raise InputError(
            f"{path} line {reader.line_num} is not CSV ({error}); a quote in a text is written twice"
        ) from None
    return separator, rows


def _bare(cell: str) -> str:
    return cell.strip().strip('"')


def _unquoted(cell: str, separator: str) -> str:
    """Cells of tables with tabs may be quoted as in CSV; in those of LJSpeech a quote is a quote."""
    if separator == "\t" and re.fullmatch(r'"([^"]|"")*"', cell) and len(cell) > 1:
        return cell[1:-1].replace('""', '"')
    return cell


def _named(path: Path, separator: str, rows: Sequence[Row]) -> list[Record]:
    number, header = rows[0][0], [cell.strip() for cell in rows[0][1]]
    names = columns.understood(header, f"{path} line {number}")
    hint = (
        "" if names.text else f"{path.name} has the columns {', '.join(header)[:200]}, and a text is in one called text"
    )
    found = []
    for number, cells in rows[1:]:
        where = f"{path} line {number}"
        if len(cells) > len(header):
            if names.text != header[-1]:
                raise InputError(f"{where} has {len(cells)} columns, the first line names {len(header)}")
            # A separator in a text that was written without quotes.
            cells = [*cells[: len(header) - 1], separator.join(cells[len(header) - 1 :])]
        values = {name: cell.strip() for name, cell in zip(header, cells, strict=False) if name}
        split = values.get("split", "")
        if split and not usable_split(split):
            raise InputError(f"{where} has split = {split[:80]!r}; {SPLIT_NAMES}")
        found.append(
            Record(
                values.get(names.path, ""),
                _bytes(values.get(names.text)),
                f"line {number}",
                key=values.get(names.key, ""),
                speaker=values.get(names.speaker, ""),
                split=split,
                part=columns.part(values, where),
                hint=hint,
            )
        )
    return found


def _unnamed(path: Path, separator: str, rows: Sequence[Row]) -> list[Record]:
    widths = [len(cells) for _, cells in rows]
    usual = statistics.mode(widths)
    if usual == 1 and max(widths) == 1:
        raise InputError(f"{path} has one column in every line, and no text; its lines are id|text")
    if usual > 3:
        raise InputError(f"{path} has {usual} columns in most lines; {_LIKE}")
    rows = [(number, cells, [cell.strip() for cell in cells]) for number, cells in rows]
    full = [cells for _, _, cells in rows if len(cells) == 3 and all(cells)]
    pairs = [(cells[1], cells[2]) for cells in full]
    bars = 2 in widths  # which the texts may hold, as other lines have no third column
    role = _third(pairs) if usual == 3 and pairs else "text"
    if role == "unknown" and not bars:
        raise InputError(
            f"{path} has three columns, and the third is neither the second one normalised nor a speaker, as in "
            f"{'|'.join(pairs[0])[:80]!r}; {_LIKE}"
        )
    found = []
    for number, whole, cells in rows:
        name, text, speaker, reason = cells[0], None, "", ""
        if len(cells) == 2:
            text = cells[1]
        elif len(cells) == 3 and role == "speaker last":
            text, speaker = cells[1:]
        elif len(cells) == 3 and role == "speaker first":
            speaker, text = cells[1:]
        elif len(cells) == 3 and (not (bars and all(cells)) or _is_normalised(*cells[1:])):
            text = cells[2] or cells[1]
        elif len(cells) > 2 and bars:
            text = separator.join(whole[1:]).strip()
        elif len(cells) > 2:
            reason = f"{path.name} line {number} has {len(cells)} columns, most lines have {usual}"
        found.append(
            Record(name, None if text is None else _bytes(text), f"line {number}", speaker=speaker, reason=reason)
        )
    return found


def _third(pairs: Sequence[tuple[str, str]]) -> str:
    """What the columns of id|?|? are: "text" (as written, normalised), "speaker last", "speaker first" or "unknown"."""
    second, third = zip(*pairs, strict=True)
    said, written = {}, {}
    for one, other in pairs:
        said.setdefault(one, set()).add(other)
        written.setdefault(other, set()).add(one)
    one_to_one = all(len(values) == 1 for values in (*said.values(), *written.values()))
    normalised = sum(_is_normalised(*pair) for pair in pairs) >= len(pairs) / 2
    if normalised and (one_to_one or not (_are_labels(second) or _are_labels(third))):
        return "text"
    if sum(one.casefold() == other.casefold() for one, other in pairs) >= len(pairs) / 2:
        return "text"
    if _are_labels(third):
        return "speaker last"
    if _are_labels(second):
        return "speaker first"
    return "unknown"


def _are_labels(values: Sequence[str]) -> bool:
    """Whether a column holds numbers alone, or single words that return."""
    if all(re.fullmatch(r"[+-]?\d[\d.,]*", value) for value in values):
        return True
    return not any(" " in value for value in values) and len(values) > 2 and len(set(values)) <= len(values) / 2


def _is_normalised(written: str, text: str) -> bool:
    """Whether `text` may be `written` with its numbers and abbreviations spoken: most of its plain words are there."""
    if not any(character.isalpha() for character in text):
        return False
    plain = [word for word in re.findall(r"\S+", written) if not re.search(r"\d", word)]
    plain = [word for word in plain if not word.endswith(".") and not (word.isupper() and len(word) > 1)]
    words = [letters for word in plain if (letters := _letters(word))]
    spoken = {_letters(word) for word in text.split()}
    if not words or sum(word in spoken for word in words) >= len(words) / 2:
        return True
    return not written.isascii() and len(set(written) & set(text)) > len(set(written)) / 2  # written without spaces


def _letters(word: str) -> str:
    return "".join(character for character in word.casefold() if character.isalpha())


def _bytes(text: str | None) -> bytes | None:
    """Back to bytes, so that another encoding than UTF-8 is found where the text is cleaned."""
    return None if text is None else text.encode("utf-8", "surrogateescape")
