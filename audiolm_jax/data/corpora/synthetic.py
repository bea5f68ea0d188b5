"""Multi-speaker synthetic speech with known text and word times, made by espeak-ng.

The corpus is an ordinary folder that `corpora.folder` reads:

    corpus.json                        its recipe; a sha256 of the samples of every shard
    manifest.jsonl                     one line per utterance: key, path, split, speaker, text, words, duration, voice
    shards/00000.jsonl, 00000.json     the lines and the sha256 of one finished shard
    wavs/<split>/<speaker>/<key>.wav   int16

Splits: `train`; `valid` and `test` (other sentences, the same voices); `unseen` (other sentences, other voices).
Every shard is spoken by a fresh process in a fixed order, because espeak-ng carries state from one utterance to
the next: so the samples depend on the configuration alone, not on the number of workers or on interruptions.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from audiolm_jax import files
from audiolm_jax.audio import resample
from audiolm_jax.data.corpora import SAMPLE_RATE, SPLITS, CorpusConfig, Utterance, sentences
from audiolm_jax.errors import InputError

# Accent + variant of espeak-ng, the well separated first: greedy choice by distance in mel-cepstra and pitch, without
# the robots, whispers and croaks and without variants that differ from another one by less than they do from
# themselves. A corpus takes the first `speakers` of VOICES and the first `unseen_speakers` of UNSEEN_VOICES; what
# was trained on one level therefore never heard the unseen voices of another.
VOICES = (
    "en-us+m3",
    "en-GB-x-rp+belinda",
    "en-us+david",
    "en-GB-scotland+Alicia",
    "gmw/en+travis",
    "en-us-nyc+Jacky",
    "en-029+grandma",
    "en-us+Andy",
    "en-GB-x-rp+zac",
    "en-us+kaukovalta",
    "en-GB-scotland+AnxiousAndy",
    "gmw/en+boris",
    "en-us-nyc+steph2",
    "en-029+ian",
    "en-us+Andrea",
    "en-GB-x-rp+anika",
    "en-us+Lee",
    "en-GB-scotland+rob",
    "gmw/en+f1",
    "en-us-nyc+Storm",
    "en-029+Michael",
    "en-us+Marco",
    "en-GB-x-rp+iven",
    "en-us+shelby",
    "en-GB-scotland+RicishayMax2",
    "gmw/en+quincy",
    "en-us-nyc+Tweaky",
    "en-029+m8",
    "en-us+marcelo",
    "en-GB-x-rp+Nguyen",
    "en-us+grandpa",
    "en-GB-scotland+norbert",
    "gmw/en+Reed",
    "en-us-nyc+m5",
    "en-029+ed",
    "en-us+Mr serious",
    "en-GB-x-rp+sandro",
    "en-us+Mario",
    "en-GB-scotland+RicishayMax",
    "gmw/en+mike2",
    "en-us-nyc+miguel",
    "en-029+announcer",
    "en-us+f5",
    "en-GB-x-rp+klatt3",
    "en-us+max",
    "en-GB-scotland+m1",
    "gmw/en+Gene2",
    "en-us-nyc+m2",
    "en-029+pablo",
    "en-us+Alex",
    "en-GB-x-rp+m7",
    "en-us+iven2",
    "en-GB-scotland+Denis",
    "gmw/en+klatt5",
    "en-us-nyc+linda",
    "en-029+m6",
    "en-us+pedro",
    "en-GB-x-rp+edward2",
    "en-us+john",
    "en-GB-scotland+Hugo",
    "gmw/en+iven4",
    "en-us-nyc+f2",
    "en-029+iven3",
    "en-us+robert",
    "en-GB-x-rp+f4",
    "en-us+Mike",
    "en-GB-scotland+adam",
    "gmw/en+gustave",
    "en-us-nyc+Gene",
    "en-029+Henrique",
)
UNSEEN_VOICES = (
    "en-us+f3",
    "en-GB-x-rp+edward",
    "en-us+Annie",
    "en-GB-scotland+paul",
    "gmw/en+aunty",
    "en-us-nyc+antonio",
    "en-029+m4",
    "en-us+victor",
)

RMS, PEAK = 0.08, 0.95
_MARGIN = 0.05  # seconds of silence left before and after the speech
_SILENCE = 0.01  # of the loudest 10 ms; quieter is silence


def utterances(config: CorpusConfig, directory: Path, progress: bool = True) -> list[Utterance]:
    """Synthesises the missing utterances, then lists the corpus; see `corpora.utterances`.

    Raises:
      InputError: the level or the number of voices does not exist, or the folder holds another corpus.
    """
    from audiolm_jax.data.corpora import folder

    root = synthesise(config, Path(config.path or directory), progress)
    # What is longer than corpus.max_seconds is left out: others are spoken, and half a sentence teaches less.
    listed = folder.utterances(dataclasses.replace(config, path=str(root), long="reject"), root, progress)
    return [dataclasses.replace(item, part=()) for item in listed]  # a duration is that of the whole


def synthesise(config: CorpusConfig, root: Path, progress: bool = True) -> Path:
    """Makes the corpus in `root`, resuming an interrupted run. Returns `root`."""
    config = dataclasses.replace(config, sample_rate=config.sample_rate or SAMPLE_RATE)
    with files.writing(root):
        return _synthesise(config, root, progress)


def _synthesise(config: CorpusConfig, root: Path, progress: bool) -> Path:
    items = plan(config)
    shards = [items[start : start + config.shard_size] for start in range(0, len(items), config.shard_size)]
    recipe = _recipe(config)
    summary = root / "corpus.json"
    if summary.exists():
        existing = _read_recipe(summary)
        if existing != recipe:
            differing = [key for key in recipe if existing.get(key) != recipe[key]]
            raise InputError(
                f"{root} holds a synthetic corpus with another {', '.join(differing)}; choose another corpus.path or "
                "remove that folder"
            )
        if (root / "manifest.jsonl").exists():
            return root
    else:
        for name in ("manifest.jsonl", "metadata.csv", "wavs"):
            if (root / name).exists():
                raise InputError(f"{root} holds recordings already ({name}); give corpus.path a new or empty folder")
        files.write_text(summary, json.dumps({"recipe": recipe}, indent=1) + "\n")

    missing = [index for index in range(len(shards)) if not _shard_path(root, index, "json").exists()]
    _speak_in_processes(config, root, {index: shards[index] for index in missing}, progress)

    lines, hashes = [], []
    for index in range(len(shards)):
        lines.append(_shard_path(root, index, "jsonl").read_text(encoding="utf-8"))
        hashes.append(json.loads(_shard_path(root, index, "json").read_text(encoding="utf-8"))["sha256"])
    files.write_text(summary, json.dumps({"recipe": recipe, "shards": hashes}, indent=1) + "\n")
    files.write_text(root / "manifest.jsonl", "".join(lines))
    return root


def plan(config: CorpusConfig) -> list[dict]:
    """The utterances to speak, in order: one dict each, all random choices made."""
    if config.level not in sentences.LEVELS:
        raise InputError(f"corpus.level = {config.level!r} is not a level; known are {', '.join(sentences.LEVELS)}")
    for key, voices in (("speakers", VOICES), ("unseen_speakers", UNSEEN_VOICES)):
        if not 1 <= getattr(config, key) <= len(voices):
            raise InputError(f"corpus.{key} = {getattr(config, key)} must be from 1 to {len(voices)}")
    items = []
    for number, split in enumerate(SPLITS):
        rng = np.random.default_rng([config.seed, number])
        voices = UNSEEN_VOICES[: config.unseen_speakers] if split == "unseen" else VOICES[: config.speakers]
        texts = sentences.texts(config.level, split, getattr(config, split), rng)
        for index, text in enumerate(texts):
            voice = voices[index % len(voices)]
            items.append(
                {
                    "key": f"{split}_{index:06d}",
                    "split": split,
                    "speaker": speaker_of(voice),
                    "text": text,
                    "voice": voice,
                    "rate": int(rng.integers(160, 196)),  # words per minute
                    "pitch": int(rng.integers(44, 57)),  # 50 is the voice's own
                    "range": int(rng.integers(40, 66)),
                    "seed": int(rng.integers(1, 2**31)),
                }
            )
    return items


def speaker_of(voice: str) -> str:
    """The name of a speaker in folders and manifests: "en-us+Mr serious" is "mr-serious"."""
    return voice.split("+")[1].lower().replace(" ", "-")


def _recipe(config: CorpusConfig) -> dict:
    keys = ("level", "speakers", "unseen_speakers", *SPLITS, "seed", "sample_rate", "shard_size")
    voices = hashlib.sha256(repr((VOICES, UNSEEN_VOICES)).encode()).hexdigest()[:16]
    return {"format": 1, "voices": voices, **{key: getattr(config, key) for key in keys}}


def _read_recipe(summary: Path) -> dict:
    try:
        return json.loads(summary.read_text(encoding="utf-8"))["recipe"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{summary} does not describe a synthetic corpus; choose another corpus.path") from error


def _shard_path(root: Path, index: int, suffix: str) -> Path:
    return root / "shards" / f"{index:05d}.{suffix}"


def _speak_in_processes(config: CorpusConfig, root: Path, shards: dict[int, list[dict]], progress: bool) -> None:
    import tqdm

    total = sum(len(items) for items in shards.values())
    pool = concurrent.futures.ThreadPoolExecutor(config.workers)
    with tqdm.tqdm(total=total, unit="utt", desc="synthetic speech", disable=not progress or not shards) as bar:
        try:
            pending = {
                pool.submit(_run_worker, root, index, items, config.sample_rate): len(items)
                for index, items in shards.items()
            }
            for future in concurrent.futures.as_completed(pending):
                future.result()
                bar.update(pending[future])
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _run_worker(root: Path, index: int, items: list[dict], sample_rate: int) -> None:
    # An interpreter of its own rather than multiprocessing: that would import the caller's main program, and with
    # it jax, anew for every shard, and would leave its workers behind when the caller is killed.
    task = json.dumps({"root": str(root), "index": index, "items": items, "sample_rate": sample_rate})
    package = str(Path(__file__).resolve().parents[3])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([package, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", __name__]
    done = subprocess.run(command, input=task, capture_output=True, text=True, env=environment, check=False)
    if done.returncode == 2:
        raise InputError(done.stderr.strip().splitlines()[-1])
    if done.returncode != 0:
        raise RuntimeError(f"speaking shard {index} failed with exit code {done.returncode}: {done.stderr.strip()}")


def main() -> None:
    """Speaks the one shard described on standard input; bad input is one line on standard error and exit code 2."""
    import soundfile

    task = json.loads(sys.stdin.read())
    try:
        with files.writing(task["root"], soundfile.SoundFileError, AssertionError):
            _speak_shard(Path(task["root"]), task["index"], task["items"], task["sample_rate"])
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def _speak_shard(root: Path, index: int, items: list[dict], sample_rate: int) -> None:
    import soundfile

    from audiolm_jax.data.corpora.espeak import Engine

    engine = Engine()
    lines = []
    digest = hashlib.sha256(engine.version.encode())
    for item in items:
        speech = engine.speak(item["text"], item["voice"], item["seed"], item["rate"], item["pitch"], item["range"])
        waveform, words = finish(speech, item["text"], sample_rate)
        samples = np.round(waveform * 32767).astype("<i2")
        path = f"wavs/{item['split']}/{item['speaker']}/{item['key']}.wav"
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        # Not renamed into place: without the shard's record, written last, the file does not belong to the corpus.
        soundfile.write(root / path, samples, sample_rate, subtype="PCM_16")
        line = {key: item[key] for key in ("key", "split", "speaker", "text", "voice")}
        line |= {"path": path, "duration": round(len(samples) / sample_rate, 4), "words": words}
        lines.append(json.dumps(line) + "\n")
        digest.update(samples.tobytes())
        digest.update(lines[-1].encode())
    files.write_text(_shard_path(root, index, "jsonl"), "".join(lines))
    record = {"utterances": len(items), "sha256": digest.hexdigest()}
    files.write_text(_shard_path(root, index, "json"), json.dumps(record) + "\n")


def finish(speech, text: str, sample_rate: int) -> tuple[np.ndarray, list[tuple[str, float, float]]]:
    """Resampled, trimmed and levelled speech with the times of its words.

    Returns:
      waveform float32 [samples], root mean square RMS (less where its peak would pass PEAK), and (word, start, end)
      in seconds. A word ends where the next one starts; the synthesiser reports starts only. What it speaks as one
      word, such as "on the", is one entry.
    """
    waveform = resample(speech.waveform, speech.sample_rate, sample_rate)
    block = max(sample_rate // 100, 1)
    blocks = len(waveform) // block
    level = np.sqrt(np.mean(waveform[: blocks * block].reshape(blocks, block) ** 2, axis=1))
    loud = np.flatnonzero(level > _SILENCE * level.max())
    margin = int(_MARGIN * sample_rate)
    start = max(loud[0] * block - margin, 0)
    end = min((loud[-1] + 1) * block + margin, len(waveform))
    waveform = waveform[start:end]
    gain = min(RMS / np.sqrt(np.mean(waveform**2)), PEAK / np.abs(waveform).max())

    duration = (end - start) / sample_rate
    shift = start / sample_rate
    starts = [min(max(time - shift, 0.0), duration) for _, time in speech.starts]
    offsets = [offset for offset, _ in speech.starts] + [len(text) + 1]
    words = []
    for index, begin in enumerate(starts):
        word = text[offsets[index] : offsets[index + 1]].strip()
        stop = starts[index + 1] if index + 1 < len(starts) else duration - _MARGIN
        words.append((word, round(begin, 4), round(stop, 4)))
    return (waveform * gain).astype(np.float32), words


if __name__ == "__main__":
    main()
