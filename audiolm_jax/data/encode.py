"""Recordings -> codes: loaded ahead in threads, resampled, in batches of few fixed shapes."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from audiolm_jax.audio import resample
from audiolm_jax.data.corpora import Reject, Utterance
from audiolm_jax.errors import OPEN_FILES, InputError

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
        channels = () if codec.channels == 1 else (codec.channels,)
        batch_BN = np.zeros((_rows(bucket, codec, batch_seconds), *channels, bucket), np.float32)
        samples_B = np.ones(len(batch_BN), int)
        for row, (_, waveform_N) in enumerate(rows):
            samples_B[row] = waveform_N.shape[-1]
            batch_BN[row, ..., : samples_B[row]] = waveform_N
        codes_BTQ = np.asarray(codec.encode(batch_BN, samples_B))
        if codes_BTQ.min() < 0 or codes_BTQ.max() >= codec.codebook_size:
            raise ValueError(f"the codec {codec.name!r} gave codes outside 0..{codec.codebook_size - 1}")
        for codes_TQ, (index, waveform_N) in zip(codes_BTQ, rows, strict=False):
            samples = waveform_N.shape[-1]
            results[index] = (codes_TQ[: codec.frames(samples)], samples / codec.sample_rate)
            bar.update(1, samples / codec.sample_rate)

    for index, loaded in enumerate(_ahead(pool, members, codec, LOOK_AHEAD)):
        if isinstance(loaded, Reject):
            results[index] = loaded
            bar.update(1)
            continue
        bucket = _bucket(loaded.shape[-1], codec)
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


def _ahead(pool, members, codec, depth: int) -> Iterator[np.ndarray | Reject]:
    """Loads in order, at most `depth` recordings ahead of the caller, so that memory stays bounded."""
    futures = [pool.submit(_loaded, item, codec) for item in members[:depth]]
    for index in range(len(members)):
        result = futures[index].result()
        futures[index] = None
        if index + depth < len(members):
            futures.append(pool.submit(_loaded, members[index + depth], codec))
        yield result


def _loaded(item: Utterance, codec) -> np.ndarray | Reject:
    try:
        return heard(item, codec)
    except Reject as reject:
        return reject


def heard(item: Utterance, codec) -> np.ndarray:
    """A recording as the codec takes it: float32 [samples] at its rate, [channels, samples] for more than one.

    Raises Reject for one that cannot be used.
    """
    try:
        waveform_N, rate = item.load()
    except (Reject, InputError):
        raise
    except Exception as error:  # whatever a decoder, or a corpus from outside, says of one broken recording
        if isinstance(error, OSError) and error.errno in OPEN_FILES:
            raise
        raise Reject(f"cannot be read: {type(error).__name__}: {' '.join(str(error).split())}") from error
    try:
        for text in (item.key, item.speaker, item.text, *(word for word, _, _ in item.words)):
            text.encode()
    except UnicodeEncodeError:
        raise Reject("its text is not valid Unicode") from None
    waveform_N = np.asarray(waveform_N, np.float32)
    shapes = ((),) if codec.channels == 1 else ((), (codec.channels,))
    if waveform_N.shape[:-1] not in shapes or not waveform_N.size:
        wanted = "[samples]" if codec.channels == 1 else f"[samples] or [{codec.channels}, samples]"
        raise Reject(f"audio of shape {waveform_N.shape} where {wanted} was expected")
    if not np.isfinite(waveform_N).all():
        raise Reject("NaN or infinite samples")
    if rate != codec.sample_rate:
        rows = [resample(row_N, rate, codec.sample_rate) for row_N in np.atleast_2d(waveform_N)]
        waveform_N = np.stack(rows) if waveform_N.ndim == 2 else rows[0]
    if not waveform_N.size:
        raise Reject("too short: no sample is left after resampling")
    return waveform_N if codec.channels == 1 or waveform_N.ndim == 2 else np.stack([waveform_N] * codec.channels)


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
