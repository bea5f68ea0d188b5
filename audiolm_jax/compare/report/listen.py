"""The part of the page to listen to: the same sentences by every source, with spectrograms and what was heard."""

from pathlib import Path

from audiolm_jax.compare.report import media
from audiolm_jax.compare.report.schema import sample_lists
from audiolm_jax.compare.report.tables import colours, escape, key, percent
from audiolm_jax.evaluation.intelligibility import normalise

BUDGET_BYTES = 9_000_000  # of audio and spectrograms in the page
_LOSSLESS, _LOSSY, _PICTURE = 1.5, 0.55, 14_000  # measured: bytes per sample (as base64), per sample, per spectrogram
_TITLES = {"real": "real speech", "codec": "through the codec"}


def listening(results: dict, directory: Path) -> str:
    """Cards, one per sentence, as many as the size of the page allows.

    Raises:
      InputError: an audio file named in the results cannot be read.
    """
    sources = sample_lists(results)
    numbers = colours(results)
    symbols = {s["name"]: key(numbers[s["name"]], s["likelihood"] == "bound") for s in results["strategies"]}
    rate = results["codec"]["sample_rate"]
    total = [0.0] * len(results["sentences"])
    clips = [0] * len(total)
    for samples in sources.values():
        for sample in samples:
            total[sample["sentence"]] += sample["seconds"] * rate
            clips[sample["sentence"]] += 1
    compressed = sum(total) * _LOSSLESS + sum(clips) * _PICTURE > BUDGET_BYTES
    cards, used = [], 0.0
    for number, sentence in enumerate(results["sentences"]):
        used += total[number] * (_LOSSY if compressed else _LOSSLESS) + clips[number] * _PICTURE
        if cards and used > BUDGET_BYTES:
            break
        cards.append(_card(number, sentence, sources, symbols, directory, compressed))
    left = len(results["sentences"]) - len(cards)
    note = f"<p class='lead'>{left} more sentences lie as audio files beside this page.</p>" if left else ""
    return "".join(cards) + note


def _card(number: int, sentence: dict, sources: dict, symbols: dict, directory: Path, compressed: bool) -> str:
    found = [(name, s) for name, samples in sources.items() for s in samples if s["sentence"] == number]
    longest = max((sample["seconds"] for _, sample in found), default=1) or 1
    clips = "".join(
        _clip(name, sample, sentence["text"], longest, symbols, directory, compressed) for name, sample in found
    )
    return (
        f'<article class="card sentence"><h3>“{escape(sentence["text"])}”<small>voice {escape(sentence["speaker"])}'
        f'</small></h3><div class="clips">{clips}</div></article>'
    )


def _clip(name: str, sample: dict, text: str, longest: float, symbols: dict, directory: Path, compressed: bool) -> str:
    waveform, sample_rate = media.read(directory / sample["file"])
    who = f"{symbols.get(name, '')}{escape(_TITLES.get(name, name))}"
    what = f"{sample['seconds']:.2f} s · CER {percent(sample['cer'], 0)} %"
    width = 100 * sample["seconds"] / longest
    label = f"{_TITLES.get(name, name)}: {text}"
    under = heard(text, sample["transcript"])
    return clip(who, what, label, under, waveform, sample_rate, width, compressed)


def clip(who, what, label, under, waveform, sample_rate: int, width: float, compressed: bool = False) -> str:
    """A spectrogram that plays when it is pressed, with a line above it (two parts) and one under it, all HTML.

    label: for those who cannot see it, as text. width: of the spectrogram, in percent. compressed: see `media`.
    """
    return (
        f'<div class="clip"><div class="who"><span>{who}</span><small>{what}</small></div>'
        f'<button class="play" data-width="{width:.2f}" aria-label="play {escape(label)}">'
        f'<img alt="" style="width:{width:.2f}%" src="{media.spectrogram_uri(waveform, sample_rate)}">'
        '<span class="head"></span><span class="icon"></span></button>'
        f'<audio preload="none" src="{media.audio_uri(waveform, sample_rate, compressed)}"></audio>'
        f'<div class="heard">{under}</div></div>'
    )


def heard(reference: str, transcript: str) -> str:
    """What was heard as HTML: wrong or added words underlined, missing words struck out."""
    import jiwer

    reference, transcript = normalise(reference), normalise(transcript)
    if not transcript:
        return '<span class="nothing">nothing was heard</span>'
    if not reference:
        return f"<ins>{escape(transcript)}</ins>"
    aligned = jiwer.process_words(reference, transcript)
    parts = []
    for chunk in aligned.alignments[0]:
        said = escape(" ".join(aligned.references[0][chunk.ref_start_idx : chunk.ref_end_idx]))
        got = escape(" ".join(aligned.hypotheses[0][chunk.hyp_start_idx : chunk.hyp_end_idx]))
        if chunk.type == "equal":
            parts.append(got)
        elif chunk.type == "delete":
            parts.append(f"<del>{said}</del>")
        else:
            parts.append(f"<ins>{got}</ins>")
    return " ".join(parts)
