"""Recordings -> codes: loaded ahead in threads, resampled, in batches of few fixed shapes."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from audiolm_jax.audio import resample
from audiolm_jax.data.corpora import Reject, Utterance
from audiolm_jax.errors import InputError

SHORTEST_BUCKET_SECONDS = 2.0
LOOK_AHEAD = 16  # recordings loaded ahead, which bounds the memory


def encode(
    members: Sequence[Utterance], codec, batch_seconds: float, pool: ThreadPoolExecutor, bar: "Progress"
) -> list:
    """For each utterance (codes_TQ, seconds), or the `Reject` with the reason.

    Recordings of similar length share a batch of fixed shape, padded on the right and, in the last batch of a length,
    with empty rows.
    """
    results: list = [None] * len(members)
    waiting: dict[int, list[tuple[int, np.ndarray]]] = {}

    def run(bucket: int) -> None:
        rows = waiting.pop(bucket)
        batch_BN = np.zeros((_rows(bucket, codec, batch_seconds), bucket), np.float32)
        samples_B = np.ones(len(batch_BN), int)
        for row, (_, waveform_N) in enumerate(rows):
            batch_BN[row, : len(waveform_N)], samples_B[row] = waveform_N, len(waveform_N)
        if codec.channels == 2:  # corpora are mono: both channels get the same samples
            batch_BN = np.stack([batch_BN, batch_BN], axis=1)
        codes_BTQ = np.asarray(codec.encode(batch_BN, samples_B))
        if codes_BTQ.min() < 0 or codes_BTQ.max() >= codec.codebook_size:
            raise ValueError(f"the codec {codec.name!r} gave codes outside 0..{codec.codebook_size - 1}")
        for codes_TQ, (index, waveform_N) in zip(codes_BTQ, rows, strict=False):
            results[index] = (codes_TQ[: codec.frames(len(waveform_N))], len(waveform_N) / codec.sample_rate)
            bar.update(1, len(waveform_N) / codec.sample_rate)

    for index, loaded in enumerate(_ahead(pool, members, codec.sample_rate, LOOK_AHEAD)):
        if isinstance(loaded, Reject):
            results[index] = loaded
            bar.update(1)
            continue
        bucket = _bucket(len(loaded), codec)
        waiting.setdefault(bucket, []).append((index, loaded))
        if len(waiting[bucket]) == _rows(bucket, codec, batch_seconds):
            run(bucket)
    for bucket in sorted(waiting):
        run(bucket)
    return results


def _bucket(samples: int, codec) -> int:
    """The padded length in samples: complete frames, 2, 4, 8, ... seconds."""
    bucket = int(np.ceil(SHORTEST_BUCKET_SECONDS * codec.sample_rate / codec.hop)) * codec.hop
    while bucket < samples:
        bucket *= 2
    return bucket


def _rows(bucket: int, codec, batch_seconds: float) -> int:
    return max(1, int(batch_seconds * codec.sample_rate / bucket))


def _ahead(pool, members, sample_rate: int, depth: int) -> Iterator[np.ndarray | Reject]:
    """Loads in order, at most `depth` recordings ahead of the caller, so that memory stays bounded."""
    futures = [pool.submit(_load, item, sample_rate) for item in members[:depth]]
    for index in range(len(members)):
        result = futures[index].result()
        futures[index] = None
        if index + depth < len(members):
            futures.append(pool.submit(_load, members[index + depth], sample_rate))
        yield result


def _load(item: Utterance, sample_rate: int) -> np.ndarray | Reject:
    try:
        waveform_N, rate = item.load()
    except Reject as reject:
        return reject
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, EOFError) as error:  # a decoder's errors about a broken file
        return Reject(f"cannot be read: {' '.join(str(error).split())}")
    try:
        for text in (item.key, item.speaker, item.text):
            text.encode()
    except UnicodeEncodeError:
        return Reject("its text is not valid Unicode")
    if waveform_N.ndim != 1 or not len(waveform_N):
        return Reject(f"audio of shape {waveform_N.shape} where [samples] was expected")
    if not np.isfinite(waveform_N).all():
        return Reject("NaN or infinite samples")
    waveform_N = resample(np.asarray(waveform_N, np.float32), rate, sample_rate)
    return waveform_N if len(waveform_N) else Reject("too short: no sample is left after resampling")


class Progress:
    """A tqdm bar over recordings that also says how many seconds of audio are encoded per second."""

    def __init__(self, total: int, show: bool):
        import tqdm

        self._bar = tqdm.tqdm(total=total, desc="tokens", unit="utt", disable=not show)
        self._seconds, self._start = 0.0, time.monotonic()

    def update(self, count: int, seconds: float = 0.0) -> None:
        self._seconds += seconds
        if seconds:
            self._bar.set_postfix_str(
                f"{self._seconds / (time.monotonic() - self._start):.0f} audio s/s", refresh=False
            )
        self._bar.update(count)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()
