"""What is measured on a trained run, and what it is compared with: `audiolm evaluate`, and the stages of compare.py.

Every function gives plain JSON values with the keys of `report/schema.py`.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from audiolm_jax import files, loading
from audiolm_jax.data import batches, corpora, encode, tokens
from audiolm_jax.data.examples import DataConfig, make_vocab
from audiolm_jax.encoders import recogniser
from audiolm_jax.evaluation import baselines, intelligibility, likelihood, speed
from audiolm_jax.evaluation.config import EvaluationConfig
from audiolm_jax.families import musicgen
from audiolm_jax.model import checkpoints, sharding
from audiolm_jax.sampling import SamplingConfig
from audiolm_jax.sampling import generator as generate
from audiolm_jax.serialization.vocab import Vocab


def evaluate(run: Path, directory: Path, evaluation: EvaluationConfig, sampling: SamplingConfig) -> dict:
    """Everything about one run; what it says is written below RUN/speech. Of one that makes music, the likelihood."""
    generator = loading.load(run, sampling)
    config, vocab, fingerprint = generator.data_config, generator.vocab, generator.codec.fingerprint
    if generator.conditioning is not None:
        return (
            {"split": evaluation.split}
            | unigram(directory, config, evaluation, fingerprint)
            | bits(run, directory, evaluation, sharding.ShardingConfig())
        )
    judge = load_judge(evaluation)
    examples = held_out(directory, config, evaluation, vocab, fingerprint, evaluation.sentences)
    return (
        {"split": evaluation.split}
        | unigram(directory, config, evaluation, fingerprint)
        | bits(run, directory, evaluation, sharding.ShardingConfig())
        | speech(generator, examples, judge, evaluation, run / "speech" / evaluation.split)
        | clocked(generator, examples, evaluation)
    )


def load_judge(evaluation: EvaluationConfig) -> recogniser.Recogniser:
    return recogniser.load(*([evaluation.recogniser] if evaluation.recogniser else []))


def unigram(directory: Path, config: DataConfig, evaluation: EvaluationConfig, fingerprint: str) -> dict:
    """Bits per second of the held-out codes without a network (evaluation/baselines.py)."""
    train = tokens.open_split(directory / "tokens", "train", fingerprint)
    vocab, rate = make_vocab(train.metadata, config), train.metadata["frame_rate"]
    seen = [np.asarray(train[index]["codes"])[:, : vocab.codebooks] for index in range(len(train))]
    held = [example["codes"] for example in held_out(directory, config, evaluation, vocab, fingerprint)]
    found = baselines.unigram(seen, held, vocab.codebook_size, rate)
    return {
        "uniform_bits_per_second": baselines.uniform_bits_per_second(vocab.codebooks, vocab.codebook_size, rate),
        "unigram_bits_per_second": found.bits_per_second,
        "per_codebook_unigram_bits_per_second": found.bits_per_second_Q.tolist(),
    }


def held_out(
    directory: Path,
    config: DataConfig,
    evaluation: EvaluationConfig,
    vocab: Vocab,
    fingerprint: str,
    limit=None,
) -> list[dict]:
    """The examples that are scored, or `limit` of the same split."""
    source = tokens.open_split(directory / "tokens", evaluation.split, fingerprint)
    return batches.evaluation_examples(source, config, vocab, evaluation.utterances if limit is None else limit)


def bits(run: Path, directory: Path, evaluation: EvaluationConfig, shards: sharding.ShardingConfig) -> dict:
    """Likelihood of held-out speech under the run's latest checkpoint, all together and of every utterance."""
    with jax.set_mesh(sharding.make_mesh(shards)):
        model, spec = checkpoints.restore_params(run)
        grid = spec.grid
        source = tokens.open_split(directory / "tokens", evaluation.split, spec.codec.fingerprint)
        examples = batches.evaluation_examples(source, spec.data, spec.vocab, evaluation.utterances)
        documents, encoded = [example["document"] for example in examples], None
        if spec.conditioning.text_encoder:  # which the text goes to, instead of into the row
            documents = [document[-1:] for document in documents]
            encoded = musicgen.of_run(run, model, spec).text_encoder([example["text"] for example in examples])
        scored = likelihood.likelihood(
            model,
            grid,
            spec.vocab,
            documents,
            source.metadata["frame_rate"],
            evaluation.method,
            evaluation.draws,
            encoded=encoded,
        )
    found = scored.summary()
    single = found["utterances"] == 1  # which has no standard error over utterances
    return {
        "likelihood": found["tag"],
        "bits_per_second": found["bits_per_second"],
        "bits_per_second_se": 0.0 if single else found["standard_error"],
        "bits_per_second_per_codebook": found["bits_per_second_by_codebook"],
        "end_bits_per_utterance": found["end_bits_per_utterance"] if grid.causal_levels else None,
        "length_bits_per_utterance": None if grid.causal_levels else found["length_bits_per_utterance"],
        "utterance_bits": scored.code_bits_UQ.sum(axis=1).tolist(),
        "utterance_seconds": scored.seconds_U.tolist(),
    }


def speech(
    generator: generate.Generator,
    examples: Sequence[dict],
    judge: recogniser.Recogniser,
    evaluation: EvaluationConfig,
    folder: Path,
) -> dict:
    """The texts of `examples` spoken by a run, written below `folder`, and what the recogniser heard."""
    waveforms = []
    for start in range(0, len(examples), evaluation.batch):
        some = examples[start : start + evaluation.batch]
        some = [*some, *some[:1] * (evaluation.batch - len(some))]  # one shape: the last batch is filled up
        texts, speakers = ([example[key] for example in some] for key in ("text", "speaker"))
        options = [dataclasses.replace(generator.sampling, seed=start + generator.sampling.seed)] * len(some)
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
    """What the recogniser hears in the recordings themselves, and in them after the codec."""
    recorded = {(item.split, item.key): item for item in utterances}
    real = []
    for example in examples:
        waveform_N, rate = recorded[evaluation.split, example["key"]].load()
        real.append(encode.resample(waveform_N, rate, codec.sample_rate))
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
    found = intelligibility.measure(judge, texts, waveforms, sample_rate)
    transcripts, errors, characters = (found.pop(key) for key in ("transcripts", "errors", "characters"))
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
    return {"cer": found, "samples": samples, "sentence_errors": errors, "sentence_characters": characters}


def clocked(generator: generate.Generator, examples: Sequence[dict], evaluation: EvaluationConfig) -> dict:
    """Sentences spoken one at a time: {"cost", "speed"} of the report. The cost is that of the longest of them."""
    some = examples[: evaluation.timed]
    texts, speakers = ([example[key] for example in some] for key in ("text", "speaker"))
    timings = speed.measure(generator, texts, speakers, evaluation.repeats)
    total, longest = speed.summary(timings), max(timings, key=lambda timing: timing.frames)
    predicted = longest.predicted
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
            "rtf": total["real_time_factor"],
            "generation_seconds": total["generation_seconds"],
            "generation_predicted_seconds": total["predicted_seconds"],
            "first_audio_seconds": total["first_audio_seconds"],
            "first_audio_predicted_seconds": total["predicted_first_audio_seconds"],
        },
    }


def training_log(run: Path) -> list[dict]:
    """The lines of metrics.jsonl (recording.py)."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def training_curve(run: Path, frame_rate: float) -> list[list[float]]:
    """[[step, bits per second of audio on training batches], ...]: where every codebook was trained in an interval."""
    curve = []
    for line in training_log(run):
        codebooks = [value for name, value in line["bits"].items() if name.startswith("codebook_")]
        curve.append((len(codebooks), line["step"], frame_rate * sum(codebooks)))
    most = max(count for count, *_ in curve)
    return [[step, value] for count, step, value in curve if count == most]
