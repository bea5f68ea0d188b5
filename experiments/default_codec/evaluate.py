"""How well the default codec keeps speech it never heard, for several numbers of codebooks; see README.md.

    python -m experiments.default_codec.evaluate --corpus /tmp/codec/corpus [--weights FILE] [--out FOLDER]

Prints one table for `test` (voices of the training, sentences never heard) and one for `unseen` (voices never heard)
and how each codebook is used. Means over utterances; needs the extra `eval` (pystoi, pesq). `--out` gets results.json
and report.html, a page with the same numbers, the training curves and clips to listen to.
"""

import argparse
from pathlib import Path

import numpy as np
from tqdm import tqdm

from audiolm_jax import codecs, files
from experiments.default_codec import corpus, page

CLIPS = 3  # utterances of a split to listen to


def si_sdr(source: np.ndarray, output: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019, arXiv:1811.02508, equation 4)."""
    source, output = source - source.mean(), output - output.mean()
    target = (output @ source) / (source @ source) * source
    return float(10 * np.log10((target @ target) / max((output - target) @ (output - target), 1e-12)))


def log_mel_distance(source: np.ndarray, output: np.ndarray, sample_rate: int) -> float:
    """Mean absolute difference of 80-band log-mel powers, in nepers of amplitude, above a floor of -60 dB."""
    from audiolm_jax.codecs.default_model import hann, mel_matrix

    def log_mel(audio):
        framed = np.lib.stride_tricks.sliding_window_view(audio, 1024)[::256] * hann(1024)
        power = np.abs(np.fft.rfft(framed)) ** 2 / (hann(1024) ** 2).sum()
        return 0.5 * np.log(power @ mel_matrix(513, 80, sample_rate) + 1e-6)

    return float(np.abs(log_mel(source) - log_mel(output)).mean())


def scores(source: np.ndarray, output: np.ndarray, sample_rate: int) -> dict:
    """Every measure of one utterance; both waveforms aligned and of one length."""
    from pesq import NoUtterancesError, pesq
    from pystoi import stoi

    try:
        wide_band = pesq(sample_rate, source, output, "wb")
    except NoUtterancesError:  # PESQ found no speech in the output
        wide_band = 1.0
    return {
        "pesq": wide_band,
        "stoi": stoi(source, output, sample_rate),
        "estoi": stoi(source, output, sample_rate, extended=True),
        "si_sdr": si_sdr(source, output),
        "log_mel": log_mel_distance(source, output, sample_rate),
    }


def evaluate(codec, audio: list[np.ndarray], counts: list[int], split: str) -> tuple[dict, list[dict]]:
    """Mean scores by number of codebooks and how the codes of every codebook are used; and what `page.write` plays."""
    by_count, used, clips = {count: [] for count in counts}, [], []
    for utterance in tqdm(audio, unit="utterance"):
        source = utterance.astype(np.float32) / 32767
        codes = codec.encode(source)
        used.append(codes)
        sounds = [{"name": "original", "scores": "", "waveform": source}]
        for count in counts:
            output = codec.decode(codes[:, :count])[codec.delay : len(source)]
            found = scores(source[: len(output)], output, codec.sample_rate)
            by_count[count].append(found)
            heard = f"PESQ {found['pesq']:.2f}, STOI {found['stoi']:.3f}, SI-SDR {found['si_sdr']:.1f} dB"
            sounds.append({"name": f"{count} codebook{'s' * (count > 1)}", "scores": heard, "waveform": output})
        if len(clips) < CLIPS:
            clips.append({"title": f"{split}, utterance {len(clips) + 1}", "sounds": sounds})
    means = {c: {k: float(np.mean([s[k] for s in rows])) for k in rows[0]} for c, rows in by_count.items()}
    usage = []
    for level in np.concatenate(used).T:
        share = np.bincount(level, minlength=codec.codebook_size) / len(level)
        entropy = -(share[share > 0] * np.log2(share[share > 0])).sum()
        usage.append({"codes": int((share > 0).sum()), "most": float(share.max()), "entropy": float(entropy)})
    return {"utterances": len(audio), "frames": len(np.concatenate(used)), "scores": means, "usage": usage}, clips


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="the corpus folder of the training")
    parser.add_argument("--weights", type=Path, help="weights to measure (default: those of the package)")
    parser.add_argument(
        "--codebooks", type=int, nargs="*", help="how many to decode from (default: 1 2 3 4 6 8 .. all)"
    )
    parser.add_argument("--splits", nargs="*", default=["test", "unseen"])
    parser.add_argument("--levels", nargs="*", default=["templates"], help="corpora to draw on: templates, digits")
    parser.add_argument("--limit", type=int, help="at most this many utterances of a split")
    parser.add_argument("--out", type=Path, help="folder for results.json and report.html")
    parser.add_argument("--log", type=Path, help="log of the training (default: log.jsonl beside the weights)")
    args = parser.parse_args()
    codec = codecs.load("default", args.weights)
    counts = args.codebooks or sorted({q for q in (1, 2, 3, 4, 6, 8, 12) if q < codec.codebooks} | {codec.codebooks})
    about = ("fingerprint", "sample_rate", "frame_rate", "codebooks", "codebook_size")
    results, clips = {name: getattr(codec, name) for name in about}, []
    for split in args.splits:
        audio = corpus.load_split(args.corpus, split, args.levels)[: args.limit]
        result, heard = evaluate(codec, audio, counts, split)
        results[split] = result
        clips += heard
        print(f"\n{split}: {result['utterances']} utterances, {result['frames'] / codec.frame_rate:.0f} s")
        print("| codebooks | kbit/s | PESQ-WB | STOI | ESTOI | SI-SDR dB | log-mel |\n|---|---|---|---|---|---|---|")
        for count, row in result["scores"].items():
            rate = count * codec.frame_rate * np.log2(codec.codebook_size) / 1000
            print(
                f"| {count} | {rate:.2f} | {row['pesq']:.2f} | {row['stoi']:.3f} | {row['estoi']:.3f} "
                f"| {row['si_sdr']:.1f} | {row['log_mel']:.3f} |"
            )
        for level, use in enumerate(result["usage"]):
            print(f"codebook {level}: {use['codes']} codes used, {use['entropy']:.2f} bits, top {use['most']:.1%}")
    if args.out:
        files.write_json(args.out / "results.json", results, indent=1)
        log = args.log or (args.weights.with_name("log.jsonl") if args.weights else Path("log.jsonl"))
        page.write(args.out / "report.html", results, clips, page.read_log(log))
        print(f"\n{args.out / 'report.html'}")


if __name__ == "__main__":
    main()
