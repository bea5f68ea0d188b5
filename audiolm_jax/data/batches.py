"""Token datasets to batches: documents, random training views, packing, the rows of a process, an exact position.

    TokenSplit -> shuffled, endless stream of documents -> rows (serialization.documents) -> packed [B, L] batches

A batch is a plain dict of numpy arrays, B rows of L positions in which several documents may follow each other:

    tokens_BLS, targets_BLS, heads_BLS int32; weights_BLS float32; positions_BL, ahead_BL int32: see
                 serialization/documents.py
    segments_BL  int32, 0 = padding, 1.. = number of the document within its row
    frames       int32 [], audio frames of the documents in the batch: frames / frame rate = seconds of audio
    X_BE         int32, X_valid_BE bool, for every feature X that a view has beside those (`View.lengths`)

A batch is that of all processes together and does not depend on how many there are. Documents are dealt out to
`lanes` lanes, number i of the endless stream to lane i % lanes; each packs its share of the rows of a batch by
itself and has a position of its own. A process takes the rows that its devices need and runs the lanes that make
them: with one lane every process packs all rows (0.7 ms a document), with as many as there are processes each packs
its own. Another number of processes goes on in the same order from the positions of all lanes.

What is equal between runs with the same dataset, seed and `shuffle`, whatever the strategy: the stream of documents
(document number i of the stream is the same recording), and for each whether its text is dropped. What is not: a
strategy with longer rows fits fewer documents into a batch, so after the same number of steps it has seen a shorter
beginning of the same stream; and with `drop_long` it may leave out more documents (`max_frames` leaves out the same
ones for all). `num_workers` > 0 gives every worker a slice of the stream and takes batches from them in turn: the
documents of a batch then depend on the number of workers too.
"""

import dataclasses
import functools
from typing import Protocol

import grain
import numpy as np
from absl import flags, logging

from audiolm_jax.data.config import DataConfig
from audiolm_jax.data.examples import document, make_vocab, prompt_text
from audiolm_jax.data.tokens import TokenSplit
from audiolm_jax.errors import InputError
from audiolm_jax.serialization import Grid, layout
from audiolm_jax.serialization.documents import Row, training_row
from audiolm_jax.serialization.text import Texts
from audiolm_jax.serialization.vocab import Vocab


def longest_row(text_ids: int, frames: int, grid: Grid) -> int:
    """Positions of the longest training view of a document with one text and one audio segment."""
    audio = len(layout.causal_cells(grid, frames)[0]) if grid.causal_levels else frames
    return 2 + text_ids + grid.framing.around_text + audio  # BOS and <audio>


def fitting(source: TokenSplit, config: DataConfig, grid: Grid, vocab: Vocab) -> np.ndarray:
    """Indices of the documents that fit into a row and into the length ids.

    Raises:
      InputError: some do not and config.drop_long is off (the longest is named); or none does.
    """
    if not len(source):
        raise InputError(f"{source.path}: split {source.split!r} has no examples")
    longest, kept = (0, 0, ""), []
    for index in range(len(source)):
        head = source.head(index)
        words = prompt_text(config, head["text"], head["speaker"], head["key"])
        frames = head["frames"]
        length = longest_row(len(source.text.encode(words)), frames, grid)
        if length <= config.sequence_length and frames <= vocab.max_frames:
            kept.append(index)
        else:
            longest = max(longest, (length, frames, head["key"]))
    dropped = len(source) - len(kept)
    if dropped:
        length, frames, key = longest
        found = (
            f"{source.path}: {dropped} of {len(source)} documents of split {source.split!r} are too long for "
            f"data.sequence_length = {config.sequence_length} positions of strategy {grid.config.strategy!r} or "
            f"data.max_frames = {vocab.max_frames}; the longest, {key!r}, has {length} positions and {frames} frames"
        )
        if not config.drop_long or not kept:
            raise InputError(f"{found}; raise these, or leave such documents out with data.drop_long")
        logging.warning("%s; they are left out", found)
    return np.asarray(kept)


# Features of every row.
KEYS = ("tokens", "targets", "heads", "weights", "positions", "ahead", "frames", "documents")


class View(Protocol):
    """How an example becomes a row."""

    lengths: dict[str, int]  # of every feature in a batch: sequence_length for KEYS

    def __call__(self, index: int, example: dict) -> dict[str, np.ndarray]:
        """The row of number `index` in the endless stream, which alone decides on random choices."""


def training_batches(
    source: TokenSplit,
    config: DataConfig,
    grid: Grid,
    vocab: Vocab,
    seed: int,
    accumulate: int = 1,
    columns: np.ndarray | None = None,
    view: View | None = None,
) -> "Batches":
    """Endless batches (module docstring), prefetched on the host: all rows, or those of one process.

    Document number i of the endless stream draws its training view from (seed, i): every epoch holds each document
    once, with a new view.

    Args:
      accumulate: microbatches of a step: the rows of a batch lie as [accumulate, B / accumulate].
      columns: the columns of these that are wanted (`distributed.columns`), None for all; a batch then has
        accumulate * len(columns) rows.
      view: how an example becomes a row; None is a training view of the whole document, drawn by the strategy.

    Raises:
      InputError: see `fitting`; the vocabulary does not belong to the dataset; rows that cannot be dealt out evenly to
        lanes and microbatches.
    """
    # Text that stands beside the streams has a table of its own.
    text_size = vocab.text_size if grid.framing.texts else source.text.size
    wanted = make_vocab(source.metadata, config, text_size, vocab.text_given)
    wanted = dataclasses.replace(wanted, extra_ids=grid.framing.extra_ids(wanted.codebooks))
    if vocab != wanted:
        raise InputError(f"{source.path}: tokens and section data need {wanted}, but the model was made for {vocab}")
    unit = accumulate * config.lanes
    if config.lanes > 1 and config.batch_size % unit:
        raise InputError(
            f"data.batch_size={config.batch_size} rows cannot be dealt out to data.lanes={config.lanes} in "
            f"training.accumulate={accumulate} parts each; choose a multiple of {unit}"
        )
    indices = np.arange(len(source)) if view else fitting(source, config, grid, vocab)
    view = view or _Documents(config, grid, vocab, seed, source.text)
    dataset = grain.MapDataset.source(_Kept(source, indices))
    if config.shuffle:
        dataset = dataset.shuffle(seed=seed)
    dataset = dataset.repeat().map_with_index(view)
    rows = config.batch_size // config.lanes
    if columns is None:
        lanes = {n: _lane(dataset, view.lengths, config, n) for n in range(config.lanes)}
        return Batches(source, lanes, accumulate)
    each = rows // accumulate  # columns of one lane
    needed = {n: columns[columns // each == n] - n * each for n in range(config.lanes)}
    needed = {n: local for n, local in needed.items() if len(local)}
    return Batches(source, {n: _lane(dataset, view.lengths, config, n) for n in needed}, accumulate, needed)


def _lane(dataset: grain.MapDataset, lengths: dict[str, int], config: DataConfig, number: int) -> grain.DatasetIterator:
    """The packed rows of one lane, batch_size / lanes at a time."""
    rows, extra = config.batch_size // config.lanes, [key for key in lengths if key not in KEYS]
    packed = grain.experimental.FirstFitPackIterDataset(
        dataset[number :: config.lanes].to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)),
        length_struct=lengths,
        meta_features=[key for key in KEYS if key != "tokens"],
        num_packing_bins=rows,
        shuffle_bins=False,
        max_sequences_per_bin=None if config.packing else 1,
    )
    batches = packed.batch(rows, drop_remainder=True).map(functools.partial(_finish, extra=extra))
    if config.num_workers:
        if not flags.FLAGS.is_parsed():  # grain reads a flag of its own; in a notebook nobody has parsed any
            flags.FLAGS.mark_as_parsed()
        per_worker = -(-config.prefetch // config.num_workers)
        options = grain.MultiprocessingOptions(num_workers=config.num_workers, per_worker_buffer_size=per_worker)
        return iter(batches.mp_prefetch(options))
    return iter(grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=config.prefetch))


class Batches:
    """The lanes that one process runs, side by side.

    `get_state()` is {"lanes": {number: position}}, plain JSON values: where each lane stood after the last batch
    taken, not the last one prefetched. `set_state` takes the state of any process that ran the same lanes, or of all
    of them joined, if dataset, configs and seed are the same. `documents` are the numbers in their split of the
    documents in the last batch taken, int32 [D] in rising order, for `keys`.
    """

    documents = np.zeros(0, np.int32)

    def __init__(
        self,
        source: TokenSplit,
        lanes: dict[int, grain.DatasetIterator],
        parts: int,
        columns: dict[int, np.ndarray] | None = None,
    ):
        self._source, self._lanes, self._parts, self._columns = source, lanes, parts, columns

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        found = [self._wanted(number, next(lane)) for number, lane in self._lanes.items()]
        whole = {key: self._joined([batch[key] for batch in found]) for key in found[0]}
        whole["frames"] = whole["frames"].sum(dtype=np.int32)
        numbers = whole.pop("documents")
        self.documents = np.unique(numbers[numbers > 0]) - 1
        return whole

    def keys(self, documents: np.ndarray) -> list[str]:
        """The keys of the recordings with these numbers."""
        return [self._source.head(int(number))["key"] for number in documents]

    def _wanted(self, number: int, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self._columns is None:
            return batch
        rows = np.arange(len(batch["frames"])).reshape(self._parts, -1)[:, self._columns[number]].ravel()
        return {key: values[rows] for key, values in batch.items()}

    def _joined(self, arrays: list[np.ndarray]) -> np.ndarray:
        """Arrays of [parts * columns, ...], side by side in each part."""
        if len(arrays) == 1:
            return arrays[0]
        parted = [x.reshape(self._parts, -1, *x.shape[1:]) for x in arrays]
        return np.concatenate(parted, axis=1).reshape(-1, *arrays[0].shape[1:])

    def get_state(self) -> dict:
        return {"lanes": {str(number): lane.get_state() for number, lane in self._lanes.items()}}

    def set_state(self, state: dict) -> None:
        positions = state.get("lanes", {"0": state})  # without: kept by a run from before there were lanes
        for number, lane in self._lanes.items():
            if str(number) not in positions:
                raise InputError(f"the position in the data is that of {len(positions)} lanes; set data.lanes to that")
            lane.set_state(positions[str(number)])

    def close(self) -> None:
        for lane in self._lanes.values():
            lane.close()


def evaluation_examples(source: TokenSplit, vocab: Vocab, limit: int = 0) -> list[dict]:
    """Held-out examples, always the same: `limit` of them spread evenly over the split (0: all).

    Each is an example of the token dataset with codes [T, Q] int32 of the leading codebooks and `frames` T. Recordings
    of more than vocab.max_frames frames are left out, for every strategy alike, and counted in the log.
    """
    fits = [index for index in range(len(source)) if source.head(index)["frames"] <= vocab.max_frames]
    if len(fits) < len(source):
        logging.warning(
            "%s: %d of %d examples of split %r have more than %d frames and are left out",
            *(source.path, len(source) - len(fits), len(source), source.split, vocab.max_frames),
        )
    if not fits:
        raise InputError(f"{source.path}: split {source.split!r} has no example of 1..{vocab.max_frames} frames")
    count = min(limit or len(fits), len(fits))
    examples = []
    for number in range(count):
        example = source[fits[number * len(fits) // count]]
        codes_TQ = example["codes"][:, : vocab.codebooks].astype(np.int32)
        examples.append({**example, "codes": codes_TQ, "frames": len(codes_TQ)})
    return examples


class _Kept:
    """The documents of a split that are used, by number."""

    def __init__(self, source: TokenSplit, indices: np.ndarray):
        self._source, self._indices = source, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict:
        return {**self._source[self._indices[index]], "number": self._indices[index]}

    def __repr__(self) -> str:
        return f"{self._source!r}, {len(self)} documents"


class _Documents:
    """A training view of the whole document."""

    def __init__(self, config: DataConfig, grid: Grid, vocab: Vocab, seed: int, text: Texts):
        self._config, self._grid, self._vocab, self._seed, self._text = config, grid, vocab, seed, text
        self.lengths = dict.fromkeys(KEYS, config.sequence_length)

    def __call__(self, index: int, example: dict) -> dict[str, np.ndarray]:
        rng = np.random.default_rng((self._seed, index))
        whole = document(example, self._config, self._vocab, self._text)
        row = training_row(whole, self._grid, self._vocab, rng, self._config.text_weight, self._config.drop_text)
        return with_totals(row, len(example["codes"]), example["number"])


def with_totals(row: Row, frames: int, number: int) -> Row:
    """The row, with its audio frames and the document's number in its split plus 1, at its first position."""
    totals = {name: np.zeros(len(row["positions"]), np.int32) for name in ("frames", "documents")}
    totals["frames"][0], totals["documents"][0] = frames, number + 1
    return {**row, **totals}


def _finish(packed: dict[str, np.ndarray], extra: list[str]) -> dict[str, np.ndarray]:
    batch = {f"{key}_BLS": packed[key] for key in ("tokens", "targets", "heads", "weights")}
    batch |= {f"{key}_BL": packed[key] for key in ("positions", "ahead")}
    batch["segments_BL"] = packed["tokens_segment_ids"]
    batch["frames"] = packed["frames"].sum(axis=1, dtype=np.int32)  # of each row
    batch["documents"] = packed["documents"]
    for key in extra:
        batch |= {f"{key}_BE": packed[key], f"{key}_valid_BE": packed[f"{key}_segment_ids"] > 0}
    return batch
