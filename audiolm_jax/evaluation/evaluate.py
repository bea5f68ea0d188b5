"""Measurements of a trained run and of its references: `audiolm evaluate`, and the stages of a comparison.

Every function returns plain JSON values with the keys of `compare/report/schema.py`. Several processes
(`training/processes.py`) call them together, and all return the same. They share the rows of the likelihood and the
batches of sentences; process 0 alone counts, times and writes.
"""

import base64
import contextlib
import dataclasses
import io
import json
import statistics
import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from audiolm_jax import files, loading
from audiolm_jax.data import batches, corpora, encode, prepare, tokens
from audiolm_jax.data.examples import document
from audiolm_jax.encoders import recogniser
from audiolm_jax.errors import InputError
from audiolm_jax.evaluation import baselines, intelligibility, intervals, likelihood, speed
from audiolm_jax.evaluation.config import EvaluationConfig
from audiolm_jax.evaluation.intelligibility import normalise
from audiolm_jax.families import published
from audiolm_jax.model import checkpoints, sharding
from audiolm_jax.model.spec import Spec
from audiolm_jax.model.transformer import Transformer
from audiolm_jax.sampling import SamplingConfig
from audiolm_jax.sampling.generator import Generator
from audiolm_jax.serialization import pieces
from audiolm_jax.serialization.text import Texts
from audiolm_jax.training import processes

HELD_OUT = "valid_bits_per_second"  # in a line of metrics.jsonl


def evaluate(run: Path, directory: Path, evaluation: EvaluationConfig, sampling: SamplingConfig) -> dict:
    """All numbers of one run: likelihood, and of speech with texts what a recogniser hears, and the speed.

    "cer" stands beside "ceilings", the same recogniser's rates on the recordings ("real", None where they are not at
    hand) and on them after the codec, "cer_means_nothing" says whether it is a judge at all, "no_cer" why there is no
    rate. Wav files of what was heard are below RUN/speech.
    """
    generator, spec = loading.load(run, sampling), checkpoints.read_spec(run)
    speaks = generator.conditioning is None or generator.conditioning.speaks
    examples = spoken(directory, evaluation, spec) if speaks else []
    judge = load_judge(evaluation) if examples else None  # before the work: its file may be missing
    numbers = (
        {"split": evaluation.split}
        | processes.by_first(lambda: unigram(directory, evaluation, spec))
        | bits(run, directory, evaluation, sharding.ShardingConfig())
    )
    if judge is None:
        reason = "the recordings have no text" if names_text(spec.data.template) else "the model is given no text"
        return numbers | {"cer": None, "no_cer": reason if speaks else "music has no words"}
    folder = run / "speech" / evaluation.split
    recordings = recorded(directory)
    beside = ceilings(recordings, examples, generator.codec, judge, evaluation, folder)
    heard = speech(generator, examples, judge, evaluation, folder)
    rates = {name: part and part["cer"] for name, part in beside.items()}
    means_nothing = intelligibility.meaningless(rates["real"] and rates["real"]["value"], rates["codec"]["value"])
    return (
        numbers
        | heard
        | {"ceilings": rates, "cer_means_nothing": means_nothing}
        | processes.by_first(lambda: timed(generator, examples, evaluation))
    )


def spoken(directory: Path, evaluation: EvaluationConfig, spec: Spec) -> list[dict]:
    """The sentences to speak, evaluation.sentences of them spread evenly over the split.

    Their text holds a letter or digit; [] if there are none, or the model is given no text.
    """
    if not names_text(spec.data.template):
        return []
    worded = [example for example in held_out(directory, evaluation, spec, 0) if normalise(example["text"])]
    count = min(evaluation.sentences, len(worded))
    return [worded[number * len(worded) // count] for number in range(count)]


def names_text(template: str) -> bool:
    """Whether a model with this data.template is given the text."""
    return "text" in {field for _, field, *_ in string.Formatter().parse(template)}


def recorded(directory: Path) -> list[corpora.Utterance]:
    """The recordings that the tokens below `directory` were made of; [] where they are not at hand."""
    try:
        values = json.loads((directory / prepare.CORPUS).read_text(encoding="utf-8"))
        corpus = corpora.CorpusConfig(**values)
        if corpus.name == "synthetic" and not (directory / "corpus").exists() and not corpus.path:
            return []
        return corpora.utterances(corpus, directory / "corpus", progress=False)
    except (OSError, ValueError, TypeError, InputError):
        return []


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
    return batches.evaluation_examples(source, spec.vocab, evaluation.utterances if limit is None else limit)


def scored(
    model: Transformer,
    spec: Spec,
    examples: Sequence[dict],
    frame_rate: float,
    evaluation: EvaluationConfig,
    text: Texts,
    text_encoder: Callable | None = None,
    prompts: Any = None,
) -> likelihood.Likelihood:
    """Likelihood of examples (`held_out`). A mesh is entered.

    text: the model's vocabulary. text_encoder: texts -> their states, for a model that cross-attends to them and has
    no text in its rows. prompts: those of a family whose text stands beside the audio.
    """
    encoded = None
    if prompts is None:
        documents = [document(example, spec.data, spec.vocab, text) for example in examples]
    else:
        documents = [prompts.example(one["text"], one["speaker"], one["codes"]) for one in examples]
    if text_encoder is not None:
        documents = [one[-1:] for one in documents]
        encoded = text_encoder([example["text"] for example in examples])
    scoring = likelihood.Scoring(evaluation.method, evaluation.draws)
    return likelihood.likelihood(model, spec.grid, spec.vocab, documents, frame_rate, scoring, encoded)


def bits(run: Path, directory: Path, evaluation: EvaluationConfig, shards: sharding.ShardingConfig) -> dict:
    """Likelihood of held-out speech under the run's latest checkpoint, all together and of every utterance."""
    with jax.set_mesh(sharding.make_mesh(shards)):
        model, spec = checkpoints.restore_params(run)
        grid = spec.grid
        examples = held_out(directory, evaluation, spec)
        own = spec.conditioning.text_encoder or grid.framing.texts
        base = published.of_run(run, model, spec) if own else None
        encoder, prompts = base and base.text_encoder, getattr(base, "prompts", None)
        rate = tokens.info(directory / "tokens")["frame_rate"]
        result = scored(model, spec, examples, rate, evaluation, pieces.of_model(spec.text, run), encoder, prompts)
    interval = intervals.ratio(result.code_bits_UQ.sum(axis=1), result.seconds_U)
    return {
        "likelihood": result.tag,
        "bits_per_second": result.bits_per_second,
        "bits_per_second_low": interval.low,
        "bits_per_second_high": interval.high,
        "bits_per_second_se": None if interval.low is None else result.standard_error,
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
    generator.speakers = ()  # a split may hold voices that training did not
    waveforms = []
    for numbers in processes.share(len(examples), evaluation.batch):
        batch = [examples[number] for number in numbers]
        batch = [*batch, *batch[:1] * (evaluation.batch - len(batch))]  # one shape: the last batch is filled up
        texts, speakers = ([example[key] for example in batch] for key in ("text", "speaker"))
        options = [dataclasses.replace(generator.sampling, seed=numbers.start + generator.sampling.seed)] * len(batch)
        results = generator.generate(texts, speakers=speakers, sampling=options)
        waveforms += [result.waveform for result in results[: len(numbers)]]
    return listen(waveforms, examples, generator.codec.sample_rate, judge, evaluation, folder)


def ceilings(
    utterances: Sequence[corpora.Utterance],
    examples: Sequence[dict],
    codec: Any,
    judge: recogniser.Recogniser,
    evaluation: EvaluationConfig,
    folder: Path,
) -> dict:
    """Error rates of the recordings themselves ("real") and of the same after the codec ("codec").

    "real" is None where a recording of an example is not among `utterances`, or its file is gone.
    """
    recordings, real = {(item.split, item.key): item for item in utterances}, []
    mine = _mine(examples, evaluation).values()
    with contextlib.suppress(KeyError, corpora.Reject):
        for example in mine:
            real.append(encode.heard(recordings[evaluation.split, example["key"]], codec))
    waveforms = {"real": real, "codec": [codec.decode(example["codes"]) for example in mine]}
    return {
        name: listen(sounds, examples, codec.sample_rate, judge, evaluation, folder / name)
        for name, sounds in waveforms.items()
    }


def _mine(examples: Sequence[dict], evaluation: EvaluationConfig) -> dict[int, dict]:
    """The examples that this process speaks and hears, by their numbers."""
    batches = processes.share(len(examples), evaluation.batch)
    return {number: examples[number] for numbers in batches for number in numbers}


def listen(
    waveforms: Sequence[np.ndarray],
    examples: Sequence[dict],
    sample_rate: int,
    judge: recogniser.Recogniser,
    evaluation: EvaluationConfig,
    folder: Path,
) -> dict | None:
    """Error rate over all waveforms, and errors and characters of every one; the first `heard` of them written as
    FOLDER/0.wav ..., named relative to the folder above the one that `folder` is in.

    waveforms: of the examples of this process (`_mine`). None if some process has not all of its own.
    """
    import soundfile

    def wav(waveform: np.ndarray) -> str:
        file = io.BytesIO()
        soundfile.write(file, waveform.T, sample_rate, format="WAV")
        return base64.b64encode(file.getvalue()).decode()

    mine, rows = _mine(examples, evaluation), None
    if len(waveforms) == len(mine):
        texts = [example["text"] for example in mine.values()]
        mono = [waveform if waveform.ndim == 1 else waveform.mean(axis=0) for waveform in waveforms]
        second = intelligibility.second_opinion(texts, mono, sample_rate) or [None] * len(texts)
        columns = zip(mine, waveforms, judge.transcribe(mono, sample_rate), second, strict=True)
        rows = [
            (
                number,
                transcript,
                other,
                waveform.shape[-1] / sample_rate,
                wav(waveform) if number < evaluation.heard else "",
            )
            for number, waveform, transcript, other in columns
        ]
    shares = processes.everyone(rows)
    if None in shares:
        return None
    rows = sorted(row for share in shares for row in share)
    _, transcripts, second, _, _ = zip(*rows)
    rate = intelligibility.measure(
        [example["text"] for example in examples], transcripts, None if None in second else second
    )
    errors, characters = (rate.pop(key) for key in ("errors", "characters"))
    samples = []
    for number, transcript, _, seconds, sound in rows[: evaluation.heard]:
        file = folder / f"{number}.wav"
        if processes.primary():
            with files.writing(file):
                folder.mkdir(parents=True, exist_ok=True)
                with files.replacing(file) as temporary:
                    temporary.write_bytes(base64.b64decode(sound))
        samples.append(
            {
                "sentence": number,
                "file": f"{folder.parent.name}/{folder.name}/{file.name}",
                "transcript": transcript,
                "cer": float(errors[number] / max(characters[number], 1)),
                "seconds": seconds,
            }
        )
    return {"cer": rate, "samples": samples, "sentence_errors": errors, "sentence_characters": characters}


def timed(generator: Generator, examples: Sequence[dict], evaluation: EvaluationConfig) -> dict:
    """{"cost", "speed"} of sentences spoken one at a time. The cost is that of the longest of them."""
    texts, speakers = ([example[key] for example in examples[: evaluation.timed]] for key in ("text", "speaker"))
    generator.speakers = ()
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
            "depth_passes": predicted.depth_passes,
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
    """The lines of metrics.jsonl (training/metrics.py), also those of held-out numbers."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def training_curve(run: Path, frame_rate: float) -> list[list[float]]:
    """[[step, bits per second of audio on training batches], ...]: where every codebook was trained in an interval."""
    curve = []
    for line in training_log(run):
        codebooks = [value for name, value in line.get("bits", {}).items() if name.startswith("codebook_")]
        curve.append((len(codebooks), line["step"], frame_rate * sum(codebooks)))
    most = max(count for count, *_ in curve)
    return [[step, value] for count, step, value in curve if count == most]


def validation_curve(run: Path) -> list[list[float]]:
    """[[step, bits per second of held-out audio], ...], where training measured them."""
    return [[line["step"], line[HELD_OUT]] for line in training_log(run) if line.get(HELD_OUT) is not None]
