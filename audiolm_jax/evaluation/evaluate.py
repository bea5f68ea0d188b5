"""Measurements of a trained run and of its references: `audiolm evaluate`, and the stages of a comparison.

Every function returns plain JSON values with the keys of `compare/report/schema.py`.
"""

import dataclasses
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from audiolm_jax import files, loading
from audiolm_jax.data import batches, corpora, encode, tokens
from audiolm_jax.encoders import recogniser
from audiolm_jax.evaluation import baselines, intelligibility, likelihood, speed
from audiolm_jax.evaluation.config import EvaluationConfig
from audiolm_jax.families import published
from audiolm_jax.model import checkpoints, sharding
from audiolm_jax.model.spec import Spec
from audiolm_jax.model.transformer import Transformer
from audiolm_jax.sampling import SamplingConfig
from audiolm_jax.sampling.generator import Generator


def evaluate(run: Path, directory: Path, evaluation: EvaluationConfig, sampling: SamplingConfig) -> dict:
    """All numbers of one run. Music models: likelihood only; others also speak, into wav files below RUN/speech."""
    generator, spec = loading.load(run, sampling), checkpoints.read_spec(run)
    music = generator.conditioning is not None
    judge = None if music else load_judge(evaluation)  # before the work: its file may be missing
    numbers = (
        {"split": evaluation.split}
        | unigram(directory, evaluation, spec)
        | bits(run, directory, evaluation, sharding.ShardingConfig())
    )
    if music:
        return numbers
    examples = held_out(directory, evaluation, spec, evaluation.sentences)
    return (
        numbers
        | speech(generator, examples, judge, evaluation, run / "speech" / evaluation.split)
        | timed(generator, examples, evaluation)
    )


def load_judge(evaluation: EvaluationConfig) -> recogniser.Recogniser:
    return recogniser.load(*([evaluation.recogniser] if evaluation.recogniser else []))


def unigram(directory: Path, evaluation: EvaluationConfig, spec: Spec) -> dict:
    """Bits per second of the held-out codes without a network (evaluation/baselines.py)."""
    train = tokens.open_split(directory / "tokens", "train", spec.codec.fingerprint)
    vocab, rate = spec.vocab, train.metadata["frame_rate"]
    train_codes = [np.asarray(train[index]["codes"])[:, : vocab.codebooks] for index in range(len(train))]
    held_out_codes = [example["codes"] for example in held_out(directory, evaluation, spec)]
    result = baselines.unigram(train_codes, held_out_codes, vocab.codebook_size, rate)
    return {
        "uniform_bits_per_second": baselines.uniform_bits_per_second(vocab.codebooks, vocab.codebook_size, rate),
        "unigram_bits_per_second": result.bits_per_second,
        "per_codebook_unigram_bits_per_second": result.bits_per_second_Q.tolist(),
    }


def held_out(directory: Path, evaluation: EvaluationConfig, spec: Spec, limit: int | None = None) -> list[dict]:
    """Examples of the split to evaluate on, `limit` of them (None: as many as the likelihood scores; 0: all)."""
    source = tokens.open_split(directory / "tokens", evaluation.split, spec.codec.fingerprint)
    return batches.evaluation_examples(source, spec.data, spec.vocab, evaluation.utterances if limit is None else limit)


def scored(
    model: Transformer,
    spec: Spec,
    examples: Sequence[dict],
    frame_rate: float,
    evaluation: EvaluationConfig,
    text_encoder: Callable | None = None,
) -> likelihood.Likelihood:
    """Likelihood of examples (`held_out`). A mesh is entered.

    text_encoder: texts -> their states, for a model that cross-attends to them and has no text in its rows.
    """
    documents, encoded = [example["document"] for example in examples], None
    if text_encoder is not None:
        documents = [document[-1:] for document in documents]
        encoded = text_encoder([example["text"] for example in examples])
    scoring = likelihood.Scoring(evaluation.method, evaluation.draws)
    return likelihood.likelihood(model, spec.grid, spec.vocab, documents, frame_rate, scoring, encoded)


def bits(run: Path, directory: Path, evaluation: EvaluationConfig, shards: sharding.ShardingConfig) -> dict:
    """Likelihood of held-out speech under the run's latest checkpoint, all together and of every utterance."""
    with jax.set_mesh(sharding.make_mesh(shards)):
        model, spec = checkpoints.restore_params(run)
        grid = spec.grid
        examples = held_out(directory, evaluation, spec)
        encoder = published.of_run(run, model, spec).text_encoder if spec.conditioning.text_encoder else None
        rate = tokens.info(directory / "tokens")["frame_rate"]
        result = scored(model, spec, examples, rate, evaluation, encoder)
    return {
        "likelihood": result.tag,
        "bits_per_second": result.bits_per_second,
        "bits_per_second_se": result.standard_error if len(examples) > 1 else 0.0,
        "bits_per_second_per_codebook": result.bits_per_second_Q.tolist(),
        "end_bits_per_utterance": float(result.end_bits_U.mean()) if grid.causal_levels else None,
        "length_bits_per_utterance": None if grid.causal_levels else float(result.length_bits_U.mean()),
        "utterance_bits": result.code_bits_UQ.sum(axis=1).tolist(),
        "utterance_seconds": result.seconds_U.tolist(),
    }


def speech(
    generator: Generator,
    examples: Sequence[dict],
    judge: recogniser.Recogniser,
    evaluation: EvaluationConfig,
    folder: Path,
) -> dict:
    """Speaks the texts of `examples` into wav files below `folder`; error rate, transcripts, samples (see `listen`)."""
    waveforms = []
    for start in range(0, len(examples), evaluation.batch):
        batch = examples[start : start + evaluation.batch]
        batch = [*batch, *batch[:1] * (evaluation.batch - len(batch))]  # one shape: the last batch is filled up
        texts, speakers = ([example[key] for example in batch] for key in ("text", "speaker"))
        options = [dataclasses.replace(generator.sampling, seed=start + generator.sampling.seed)] * len(batch)
        waveforms += [r.waveform for r in generator.generate(texts, speakers=speakers, sampling=options)]
    return listen(waveforms[: len(examples)], examples, generator.codec.sample_rate, judge, evaluation, folder)


def ceilings(
    utterances: Sequence[corpora.Utterance],
    examples: Sequence[dict],
    codec: Any,
    judge: recogniser.Recogniser,
    evaluation: EvaluationConfig,
    folder: Path,
) -> dict:
    """Error rates of the recordings themselves ("real") and of the same after the codec ("codec")."""
    recordings = {(item.split, item.key): item for item in utterances}
    real = []
    for example in examples:
        real.append(encode.heard(recordings[evaluation.split, example["key"]], codec))
    coded = [codec.decode(example["codes"]) for example in examples]
    return {
        name: listen(waveforms, examples, codec.sample_rate, judge, evaluation, folder / name)
        for name, waveforms in (("real", real), ("codec", coded))
    }


def listen(
    waveforms: Sequence[np.ndarray],
    examples: Sequence[dict],
    sample_rate: int,
    judge: recogniser.Recogniser,
    evaluation: EvaluationConfig,
    folder: Path,
) -> dict:
    """Error rate over all waveforms, and errors and characters of every one; the first `heard` of them written as
    FOLDER/0.wav ..., named relative to the folder above the one that `folder` is in."""
    import soundfile

    texts = [example["text"] for example in examples]
    rate = intelligibility.measure(judge, texts, waveforms, sample_rate)
    transcripts, errors, characters = (rate.pop(key) for key in ("transcripts", "errors", "characters"))
    folder.mkdir(parents=True, exist_ok=True)
    samples = []
    for index, waveform in enumerate(waveforms[: evaluation.heard]):
        with files.replacing(folder / f"{index}.wav") as temporary:
            soundfile.write(temporary, waveform, sample_rate, format="WAV")
        samples.append(
            {
                "sentence": index,
                "file": f"{folder.parent.name}/{folder.name}/{index}.wav",
                "transcript": transcripts[index],
                "cer": float(errors[index] / max(characters[index], 1)),
                "seconds": len(waveform) / sample_rate,
            }
        )
    return {"cer": rate, "samples": samples, "sentence_errors": errors, "sentence_characters": characters}


def timed(generator: Generator, examples: Sequence[dict], evaluation: EvaluationConfig) -> dict:
    """{"cost", "speed"} of sentences spoken one at a time. The cost is that of the longest of them."""
    texts, speakers = ([example[key] for example in examples[: evaluation.timed]] for key in ("text", "speaker"))
    timings = speed.measure(generator, texts, speakers, evaluation.repeats)
    longest = max(timings, key=lambda timing: timing.frames)
    predicted = longest.predicted
    seconds = sum(timing.seconds for timing in timings)
    return {
        "cost": {
            "frames": longest.frames,
            "predicted_passes": predicted.passes,
            "measured_passes": longest.passes,
            "lookahead_frames": predicted.look_ahead,
            "first_audio_passes": predicted.first_passes,
            "positions": predicted.positions,
            "flops": predicted.flops,
            "kv_bytes": predicted.cache_bytes,
        },
        "speed": {
            "rtf": seconds / sum(timing.audio_seconds for timing in timings),
            "generation_seconds": seconds,
            "generation_predicted_seconds": sum(timing.predicted_seconds for timing in timings),
            "first_audio_seconds": statistics.median(timing.first_audio_seconds for timing in timings),
            "first_audio_predicted_seconds": statistics.median(t.predicted_first_audio_seconds for t in timings),
        },
    }


def training_log(run: Path) -> list[dict]:
    """The lines of metrics.jsonl (training/metrics.py), but for those of held-out numbers."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if "loss" in line]


def training_curve(run: Path, frame_rate: float) -> list[list[float]]:
    """[[step, bits per second of audio on training batches], ...]: where every codebook was trained in an interval."""
    curve = []
    for line in training_log(run):
        codebooks = [value for name, value in line["bits"].items() if name.startswith("codebook_")]
        curve.append((len(codebooks), line["step"], frame_rate * sum(codebooks)))
    most = max(count for count, *_ in curve)
    return [[step, value] for count, step, value in curve if count == most]
