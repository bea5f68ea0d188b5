"""The part of the page to listen to: the same sentences by every source, with spectrograms and transcripts."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup

from audiolm_jax.compare.report import media
from audiolm_jax.compare.report.schema import sample_lists
from audiolm_jax.compare.report.tables import colours, percent
from audiolm_jax.compare.report.templates import key, parts
from audiolm_jax.evaluation.intelligibility import normalise

BUDGET_BYTES = 9_000_000  # of audio and spectrograms in the page
_LOSSLESS, _LOSSY, _PICTURE = 1.5, 0.55, 14_000  # measured: bytes per sample (as base64), per sample, per spectrogram
_TITLES = {"real": "real speech", "codec": "through the codec"}


def listening(results: dict, directory: Path) -> tuple[list[Markup], int]:
    """(cards, one per sentence, as many as the size of the page allows; number of sentences left out).

    Raises InputError for an audio file that cannot be read.
    """
    sources, numbers, rate = sample_lists(results), colours(results), results["codec"]["sample_rate"]
    symbols = {s["name"]: key(numbers[s["name"]], s["likelihood"] == "bound") for s in results["strategies"]}
    samples = [(name, sample) for name, samples in sources.items() for sample in samples]
    by_sentence = [[pair for pair in samples if pair[1]["sentence"] == n] for n in range(len(results["sentences"]))]
    lengths = [sum(sample["seconds"] for _, sample in clips) * rate for clips in by_sentence]
    compressed = sum(lengths) * _LOSSLESS + len(samples) * _PICTURE > BUDGET_BYTES
    cards, size = [], 0.0
    for sentence, clips, length in zip(results["sentences"], by_sentence, lengths, strict=True):
        size += length * (_LOSSY if compressed else _LOSSLESS) + len(clips) * _PICTURE
        if cards and size > BUDGET_BYTES:
            break
        longest = max((sample["seconds"] for _, sample in clips), default=1) or 1
        text = sentence["text"]
        figures = []
        for name, sample in clips:
            waveform_N, sample_rate = media.read(directory / sample["file"])
            title, caption = _TITLES.get(name, name), f"{sample['seconds']:.2f} s · CER {percent(sample['cer'], 0)} %"
            texts = symbols.get(name, Markup("")) + title, caption, marked_transcript(text, sample["transcript"])
            width = 100 * sample["seconds"] / longest
            figures.append(clip(texts, f"{title}: {text}", waveform_N, sample_rate, width, compressed))
        cards.append(parts.sentence(text, sentence["speaker"], figures))
    return cards, len(results["sentences"]) - len(cards)


def clip(
    texts: Sequence[str], label: str, waveform_N: np.ndarray, sample_rate: int, width: float, compressed: bool = False
) -> Markup:
    """A spectrogram that plays when it is pressed.

    texts: two above it, and one below. label: for screen readers. width: of the spectrogram, in percent. compressed:
    see `media.audio_uri`.
    """
    who, what, under = texts
    picture, audio = (
        media.spectrogram_uri(waveform_N, sample_rate),
        media.audio_uri(waveform_N, sample_rate, compressed),
    )
    return parts.clip(who, what, label, under, width, len(waveform_N) / sample_rate, picture, audio)


def marked_transcript(reference: str, transcript: str) -> Markup:
    """The transcript as HTML: wrong or added words underlined, missing words struck out."""
    import jiwer

    reference, transcript = normalise(reference), normalise(transcript)
    if not transcript:
        return Markup('<span class="nothing">nothing was heard</span>')
    if not reference:
        return parts.heard([("insert", "", transcript)])
    aligned = jiwer.process_words(reference, transcript)
    chunks = []
    for chunk in aligned.alignments[0]:
        expected = aligned.references[0][chunk.ref_start_idx : chunk.ref_end_idx]
        words = aligned.hypotheses[0][chunk.hyp_start_idx : chunk.hyp_end_idx]
        chunks.append((chunk.type, " ".join(expected), " ".join(words)))
    return parts.heard(chunks)
