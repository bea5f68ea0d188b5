"""Intelligibility: character error rate (CER), with intervals and a second opinion.

    CER = (substitutions + deletions + insertions) / characters of the references

over all utterances together (Levenshtein distance, by jiwer). It can exceed 1 where a recogniser inserts
characters. A waveform in which nothing can be heard (empty, very short, silent, NaN) counts as all deletions.
It is a number of the recogniser and the speech together: read it beside that of the recordings (`meaningless`).
"""

import dataclasses
import unicodedata
from collections.abc import Sequence

import numpy as np

from audiolm_jax.audio import resample
from audiolm_jax.errors import InputError
from audiolm_jax.evaluation import intervals

MEANINGLESS = 0.2  # CER on the recordings above which a recogniser is no judge of this speech
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def normalise(text: str) -> str:
    """Text as it is compared: lower case, no accents, letters, digits, apostrophes, single spaces.

    Compatibility forms and accents are resolved (Unicode NFKD, combining marks dropped), typographic apostrophes
    become plain ones, every other character becomes a space. Digits stay digits: a recogniser that spells words
    is charged for them, so references should be written out.
    """
    # Twice: a compatibility form may resolve to a capital, and a capital's lower case to a letter and a mark.
    text = unicodedata.normalize("NFKD", text.replace("\u2019", "'").lower())
    text = unicodedata.normalize("NFKD", text.lower())
    text = "".join(c for c in text if not unicodedata.combining(c))
    return " ".join("".join(c if c.isalnum() or c == "'" else " " for c in text).split())


def character_errors(references: Sequence[str], hypotheses: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Per utterance: (character errors int64 [B], reference characters int64 [B]), after `normalise`.

    Raises InputError for unequal numbers of references and hypotheses, and references without any character to find.
    """
    import jiwer

    if len(references) != len(hypotheses):
        raise InputError(f"{len(references)} references but {len(hypotheses)} hypotheses: one for each is needed")
    errors_B = np.zeros(len(references), np.int64)
    lengths_B = np.zeros(len(references), np.int64)
    for index, (reference, hypothesis) in enumerate(zip(references, hypotheses)):
        reference, hypothesis = normalise(reference), normalise(hypothesis)
        lengths_B[index] = len(reference)
        if not reference or not hypothesis:  # jiwer takes no empty reference
            errors_B[index] = len(reference) + len(hypothesis)
        else:
            counts = jiwer.process_characters(reference, hypothesis)
            errors_B[index] = counts.substitutions + counts.deletions + counts.insertions
    if not lengths_B.any():
        raise InputError("the references hold no letters or digits, so there is no error rate to give")
    return errors_B, lengths_B


def character_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """CER over all utterances together, a fraction (0 is perfect). Raises InputError as `character_errors`."""
    errors_B, lengths_B = character_errors(references, hypotheses)
    return float(errors_B.sum() / lengths_B.sum())


def meaningless(recordings: float | None, coded: float) -> str:
    """A sentence if the recogniser is no judge of this speech, "" if it is one.

    recordings, coded: its CER on the recordings (None: they are not there any more), and on them after the codec.
    """
    judged, what = (coded, "the recordings after the codec") if recordings is None else (recordings, "the recordings")
    if judged <= MEANINGLESS:
        return ""
    return (
        f"the recogniser mishears {judged:.0%} of the characters of {what} (above {MEANINGLESS:.0%}), so its error "
        "rates mean nothing for this speech"
    )


def measure(references: Sequence[str], transcripts: Sequence[str], second: Sequence[str] | None = None) -> dict:
    """Error rates of what a recogniser (`Recogniser.transcribe`) heard where `references` should be said.

    second: what `second_opinion` heard. Returns {"value", "low", "high" (95 % over utterances, or None), "utterances",
    "second_opinion" (CER of `second`, or None)}, and in the order of the utterances "errors" (wrong characters) and
    "characters" (of the reference). Raises InputError as `character_errors`.
    """
    errors_B, characters_B = character_errors(references, transcripts)
    return {
        **dataclasses.asdict(intervals.ratio(errors_B, characters_B)),
        "utterances": len(references),
        "second_opinion": None if second is None else character_error_rate(references, second),
        "errors": errors_B.tolist(),
        "characters": characters_B.tolist(),
    }


def second_opinion(references: Sequence[str], waveforms: Sequence[np.ndarray], sample_rate: int) -> list[str] | None:
    """Transcripts by pocketsphinx under a grammar of digit words (one or more, in any order).

    The grammar only ever hears digit words, so a string of wrong words of the right length already gets credit:
    noise scores near 0.8, not 1. An independent recogniser, trained on real speech; weak on formant synthesis.
    None where pocketsphinx is not installed (extra `eval`) or a reference holds a word outside the grammar.
    """
    if not all(word in DIGITS for reference in references for word in normalise(reference).split()):
        return None
    try:
        import pocketsphinx
    except ImportError:
        return None

    decoder = pocketsphinx.Decoder(lm=None, samprate=16_000, loglevel="FATAL")
    grammar = f"#JSGF V1.0; grammar digits; public <digits> = ( {' | '.join(DIGITS)} )+ ;"
    decoder.add_jsgf_string("digits", grammar)
    decoder.activate_search("digits")
    transcripts = []
    for waveform in waveforms:
        waveform = np.asarray(waveform, np.float32)
        if len(waveform) < 0.1 * sample_rate or not np.all(np.isfinite(waveform)):
            transcripts.append("")
            continue
        waveform = resample(waveform, sample_rate, 16_000)
        quiet = np.zeros(1600, np.float32)  # the decoder expects silence around the words
        samples = np.clip(np.concatenate([quiet, waveform, quiet]), -1, 1)
        decoder.start_utt()
        decoder.process_raw((samples * 32767).astype("<i2").tobytes(), full_utt=True)
        decoder.end_utt()
        hypothesis = decoder.hyp()
        transcripts.append(hypothesis.hypstr if hypothesis else "")
    return transcripts
