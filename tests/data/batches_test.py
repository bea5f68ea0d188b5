"""Batches: what is packed is what was made, the position is exact, processes share the stream, strategies its order."""

import dataclasses
import functools
import itertools
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from audiolm_jax import codecs, serialization
from audiolm_jax.data import batches as data
from audiolm_jax.data import examples, tokens
from audiolm_jax.data.corpora import CorpusConfig, Utterance
from audiolm_jax.errors import InputError
from audiolm_jax.serialization import STRATEGIES, SerializationConfig, text
from audiolm_jax.serialization.documents import training_row
from audiolm_jax.serialization.vocab import END_AUDIO

COUNT = 23
CONFIG = examples.DataConfig(
    sequence_length=160, batch_size=3, template="{speaker}: {text}", max_frames=40, drop_text=0.3
)


def load(seed: int):
    noise = np.random.default_rng(seed).standard_normal(3000 + 700 * seed).cumsum()
    return (0.3 * noise / np.abs(noise).max()).astype(np.float32), 16000


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    items = [
        Utterance(f"u{i}", "train", f"s{i % 3}", f"text {i}é", (("text", 0.0, 0.1),), functools.partial(load, i))
        for i in range(COUNT)
    ]
    config = tokens.TokensConfig(shard_utterances=10)
    tokens.write(items, codecs.load("tiny"), directory, config, CorpusConfig(name="folder"), progress=False)
    return tokens.open_split(directory, "train")


@pytest.fixture(scope="module")
def vocab(source):
    return examples.make_vocab(source.metadata, CONFIG)


def batches(source, vocab, config=CONFIG, strategy="delay", seed=0, **rows):
    grid = serialization.bind(SerializationConfig(strategy), vocab.codebooks)
    return data.training_batches(source, config, grid, vocab, seed, **rows)


def take(iterator, count: int) -> list[dict]:
    return [next(iterator) for _ in range(count)]


def rows_of(batch: dict) -> list[dict]:
    """The unpacked rows of a batch, in the order of (row of the batch, segment)."""
    rows = []
    for b, segments_L in enumerate(batch["segments_BL"]):
        for number in range(1, segments_L.max() + 1):
            where = segments_L == number
            assert np.ptp(np.flatnonzero(where)) == where.sum() - 1  # a document is in one piece
            names = [name for name in batch if name not in ("segments_BL", "frames")]
            rows.append({name.rsplit("_", 1)[0]: batch[name][b][where] for name in names})
    return rows


def documents_of(source, vocab, config=CONFIG) -> list:
    return [examples.document(source[i], config, vocab) for i in range(len(source))]


def row_key(row: dict) -> bytes:
    return b"".join(row[name].tobytes() for name in sorted(row))


def one_by_one(source, vocab, strategy, count: int, seed=0) -> list[tuple[int, dict]]:
    """(frames, row) of the first documents of the stream, each in a batch of its own."""
    config = dataclasses.replace(CONFIG, packing=False, batch_size=1, sequence_length=400)
    found = take(batches(source, vocab, config, strategy, seed), count)
    return [(int(batch["frames"]), rows_of(batch)[0]) for batch in found]


def test_stream_is_the_same_for_every_strategy_and_its_rows_are_seeded_views(source, vocab):
    """Rebuilt from the definition: row i is the training view of a document with the generator (seed, i)."""
    orders, count = set(), COUNT + 8
    whole = documents_of(source, vocab)
    for strategy in STRATEGIES:
        grid = serialization.bind(SerializationConfig(strategy), vocab.codebooks)
        order = []
        for i, (frames, row) in enumerate(one_by_one(source, vocab, strategy, count, seed=3)):
            views = {
                row_key(training_row(doc, grid, vocab, np.random.default_rng((3, i)), 0.0, CONFIG.drop_text)): d
                for d, doc in enumerate(whole)
                if len(doc[1][1]) == frames
            }
            has_text = bool(((row["tokens"] >= 8) & (row["tokens"] < 264)).any())
            order.append((views[row_key(row)], has_text))
        orders.add(tuple(order))
    assert len(orders) == 1  # the same recordings, with or without their text
    (order,) = orders
    numbers = [d for d, _ in order]
    assert sorted(numbers[:COUNT]) == list(range(COUNT))  # an epoch holds every document once
    assert numbers[:COUNT] != list(range(COUNT))
    assert numbers[COUNT:] != numbers[: count - COUNT]  # another order in the next epoch
    assert {has_text for _, has_text in order} == {True, False}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_packed_rows_are_the_rows_of_the_stream(source, vocab, strategy):
    """Packing moves a document within its batch only: the rows of n batches are a beginning of the stream."""
    rows = [row_key(row) for _, row in one_by_one(source, vocab, strategy, 60)]
    packed = [row_key(row) for batch in take(batches(source, vocab, strategy=strategy), 3) for row in rows_of(batch)]
    assert CONFIG.batch_size <= len(packed) <= len(rows)
    assert sorted(packed) == sorted(rows[: len(packed)])


FOUR = dataclasses.replace(CONFIG, batch_size=8, packing=False)


@pytest.mark.parametrize("lanes", [1, 2, 4])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_processes_share_the_rows_of_every_batch(source, vocab, lanes, accumulate):
    """Each row is in the batch of one process, in its place, and goes on from the positions of other processes."""
    config = dataclasses.replace(FOUR, lanes=lanes)

    def some(columns=None):
        return batches(source, vocab, config, accumulate=accumulate, columns=columns)

    def parts(batch: dict, name: str) -> np.ndarray:
        return batch[name].reshape(accumulate, -1, *batch[name].shape[1:])

    every = np.arange(FOUR.batch_size // accumulate)
    whole, pair = some(), [some(columns) for columns in np.split(every, 2)]
    for _ in range(3):
        expected, found = next(whole), [next(one) for one in pair]
        assert sum(batch["frames"] for batch in found) == expected["frames"]
        both = np.unique(np.concatenate([one.documents for one in pair]))
        np.testing.assert_array_equal(both, whole.documents)
        for name in set(expected) - {"frames"}:
            joined = np.concatenate([parts(batch, name) for batch in found], axis=1)
            np.testing.assert_array_equal(joined, parts(expected, name), name)
    states = [json.loads(json.dumps(one.get_state()))["lanes"] for one in pair]
    assert whole.get_state()["lanes"] == states[0] | states[1]
    four = [some(columns) for columns in np.split(every, 4)]
    for one in four:
        one.set_state({"lanes": states[0] | states[1]})
    expected, found = next(whole), [next(one) for one in four]
    joined = np.concatenate([parts(batch, "tokens_BLS") for batch in found], axis=1)
    np.testing.assert_array_equal(joined, parts(expected, "tokens_BLS"))


def test_lanes_hold_every_document_once(source, vocab):
    """Two epochs of 23 documents in two lanes, a document a row: the same as in one lane, in another order."""
    plain = dataclasses.replace(FOUR, batch_size=2, drop_text=0.0)  # a document's row is the same in every epoch
    found = [batches(source, vocab, dataclasses.replace(plain, lanes=n)) for n in (1, 2)]
    one, two = ([row_key(row) for batch in take(it, COUNT) for row in rows_of(batch)] for it in found)
    assert sorted(one) == sorted(two)
    assert len(set(one)) == COUNT


def test_a_position_from_before_there_were_lanes_is_that_of_the_only_one(source, vocab):
    whole, resumed = batches(source, vocab), batches(source, vocab)
    take(whole, 2)
    resumed.set_state(whole.get_state()["lanes"]["0"])
    np.testing.assert_array_equal(next(resumed)["tokens_BLS"], next(whole)["tokens_BLS"])
    with pytest.raises(InputError, match=r"that of 1 lanes; set data\.lanes"):
        batches(source, vocab, dataclasses.replace(FOUR, lanes=2)).set_state(whole.get_state())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_shapes_padding_and_frames(source, vocab, strategy):
    grid = serialization.bind(SerializationConfig(strategy), vocab.codebooks)
    B, L, S = CONFIG.batch_size, CONFIG.sequence_length, grid.streams
    stream = batches(source, vocab, strategy=strategy)
    for batch in itertools.islice(stream, 4):
        for name, values in batch.items():
            shape = {"BLS": (B, L, S), "BL": (B, L), "frames": ()}[name.rsplit("_", 1)[-1]]
            assert values.shape == shape, name
            assert values.dtype == (np.float32 if name == "weights_BLS" else np.int32), name
        padding_BL = batch["segments_BL"] == 0
        for name in ("tokens_BLS", "targets_BLS", "heads_BLS", "weights_BLS", "positions_BL", "ahead_BL"):
            assert not batch[name][padding_BL].any(), name
        assert (batch["segments_BL"].max(axis=1) >= 1).all()
        numbers = stream.documents  # a recording may be there twice, at the end of an epoch
        assert (np.diff(numbers) > 0).all() and len(numbers) <= batch["segments_BL"].max(axis=1).sum()
        assert sum(source.head(number)["frames"] for number in numbers) <= batch["frames"]
        if grid.causal_levels == grid.codebooks:  # causal rows hold every code once
            codes = (batch["heads_BLS"] >= 3) & (batch["targets_BLS"] != END_AUDIO)
            assert codes.sum() == batch["frames"] * vocab.codebooks


def test_packing_fills_rows_and_no_packing_gives_each_document_its_own(source, vocab):
    packed = take(batches(source, vocab, strategy="parallel"), 2)
    assert max(batch["segments_BL"].max() for batch in packed) > 2
    alone = dataclasses.replace(CONFIG, packing=False)
    single = take(batches(source, vocab, alone, strategy="parallel"), 6)
    assert all((batch["segments_BL"].max(axis=1) == 1).all() for batch in single)
    keys = {row_key(row) for batch in single for row in rows_of(batch)}
    shared = [row_key(row) for row in rows_of(packed[0])]
    assert set(shared) <= keys  # the same rows, packed or not


@pytest.mark.parametrize("strategy", ["delay", "masked"])
@pytest.mark.parametrize("taken", [0, 1, 6])
def test_resuming_equals_never_having_stopped(source, vocab, strategy, taken):
    whole = batches(source, vocab, strategy=strategy)
    take(whole, taken)
    state = json.dumps(whole.get_state())
    rest = take(whole, 6)
    resumed = batches(source, vocab, strategy=strategy)
    take(resumed, 3)  # a state may also be set on an iterator that is under way
    resumed.set_state(json.loads(state))
    for one, other in zip(rest, take(resumed, 6), strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    assert json.dumps(resumed.get_state()) == json.dumps(whole.get_state())


def test_other_seed_other_order_and_no_shuffle_keeps_it(source, vocab):
    first, again, other = ([frames for frames, _ in one_by_one(source, vocab, "delay", 12, seed)] for seed in (0, 0, 1))
    assert first == again != other
    config = dataclasses.replace(CONFIG, packing=False, shuffle=False)
    found = [batch["frames"] for batch in take(batches(source, vocab, config), 5)]
    frames = [len(doc[1][1]) for doc in documents_of(source, vocab)]
    assert found == [sum(frames[i : i + 3]) for i in range(0, 15, 3)]


def test_document(source, vocab):
    (kind, ids_L), (audio, codes_TQ) = examples.document(source[4], CONFIG, vocab)
    assert (kind, text.decode(ids_L), audio) == ("text", "s1: text 4é", "audio")
    np.testing.assert_array_equal(codes_TQ, codecs.load("tiny").encode(load(4)[0]))
    assert codes_TQ.dtype == np.int32
    two = dataclasses.replace(CONFIG, codebooks=2, template="")
    ((kind, first_T2),) = examples.document(source[4], two, examples.make_vocab(source.metadata, two))
    assert kind == "audio"
    np.testing.assert_array_equal(first_T2, codes_TQ[:, :2])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_longest_row_is_the_longest_of_many_views(source, vocab, strategy):
    grid = serialization.bind(SerializationConfig(strategy), vocab.codebooks)
    whole = examples.document(source[5], CONFIG, vocab)
    longest = data.longest_row(len(whole[0][1]), len(whole[1][1]), grid)
    rng = np.random.default_rng(0)
    assert max(len(training_row(whole, grid, vocab, rng)["positions"]) for _ in range(30)) == longest


def test_documents_that_are_too_long(source, vocab):
    short = dataclasses.replace(CONFIG, sequence_length=90)
    with pytest.raises(InputError, match=r"documents of split 'train' are too long.*'u22', has 1\d\d positions and 29"):
        batches(source, vocab, short, "flat")
    kept = dataclasses.replace(short, drop_long=True)
    assert all((b["segments_BL"].max(axis=1) >= 1).all() for b in take(batches(source, vocab, kept, "flat"), 3))
    few = dataclasses.replace(CONFIG, max_frames=20)
    few_vocab = examples.make_vocab(source.metadata, few)
    with pytest.raises(InputError, match="max_frames = 20"):
        batches(source, few_vocab, few, "parallel")
    with pytest.raises(InputError, match="23 of 23"):
        batches(source, vocab, dataclasses.replace(kept, sequence_length=5), "flat")
    assert len(data.evaluation_examples(source, few_vocab)) == len(
        data.fitting(
            source,
            dataclasses.replace(few, drop_long=True),
            serialization.bind(SerializationConfig("parallel"), 4),
            few_vocab,
        )
    )


def test_bad_input(source, vocab):
    with pytest.raises(InputError, match=r"data\.template=.* names \{name\}"):
        examples.DataConfig(template="{name}: {text}")
    with pytest.raises(InputError, match=r"data\.template"):
        examples.DataConfig(template="{text")
    with pytest.raises(InputError, match=r"data\.drop_text=1\.5"):
        examples.DataConfig(drop_text=1.5)
    with pytest.raises(InputError, match=r"data\.batch_size=0"):
        examples.DataConfig(batch_size=0)
    with pytest.raises(InputError, match="codebooks = 5, but the token dataset has 4"):
        examples.make_vocab(source.metadata, dataclasses.replace(CONFIG, codebooks=5))
    with pytest.raises(InputError, match="the model was made for"):
        batches(source, dataclasses.replace(vocab, codebooks=2))
    with pytest.raises(InputError, match=r"data\.lanes=2 must divide data\.batch_size=3"):
        examples.DataConfig(batch_size=3, lanes=2)
    with pytest.raises(InputError, match=r"data\.lanes=2 in training\.accumulate=3 .* multiple of 6"):
        batches(source, vocab, dataclasses.replace(FOUR, lanes=2), accumulate=3)
    with pytest.raises(InputError, match=r"serialization\.strategy"):
        batches(source, vocab, strategy="zigzag")


def test_evaluation_examples_are_spread_and_always_the_same(source, vocab):
    every = data.evaluation_examples(source, vocab)
    assert [example["key"] for example in every] == [f"u{i}" for i in range(COUNT)]
    some = data.evaluation_examples(source, vocab, limit=5)
    assert [example["key"] for example in some] == ["u0", "u4", "u9", "u13", "u18"]
    assert some[1]["frames"] == len(some[1]["codes"])
    assert some[1]["codes"].dtype == np.int32
    assert some[1]["text"] == "text 4é"


@pytest.mark.slow
def test_workers_give_the_same_stream_again_and_resume(source, vocab, tmp_path):
    """In a process of its own: workers are spawned, which needs an importable main module."""
    code = f"""
        import dataclasses, json, sys
        import numpy as np
        from audiolm_jax.data import batches, tokens
        from audiolm_jax.serialization import SerializationConfig, bind

        def build():
            source = tokens.open_split({str(source.path)!r}, "train")
            config = batches.DataConfig(sequence_length=160, batch_size=3, max_frames=40, num_workers=2)
            vocab = batches.make_vocab(source.metadata, config)
            return batches.training_batches(source, config, bind(SerializationConfig("delay"), 4), vocab, 0)

        if __name__ == "__main__":
            whole = build()
            for _ in range(5):
                next(whole)
            state = json.dumps(whole.get_state())
            rest = [next(whole) for _ in range(4)]
            resumed = build()
            resumed.set_state(json.loads(state))
            for one in rest:
                other = next(resumed)
                assert all((one[name] == other[name]).all() for name in one)
            whole.close()
            resumed.close()
            print("equal")
    """
    script = tmp_path / "workers.py"
    script.write_text(textwrap.dedent(code))
    root = str(Path(__file__).parents[2])
    run = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": root},
        timeout=300,
    )
    assert run.stdout.split() == ["equal"], run.stderr[-3000:]


def test_an_older_jaxlib_is_not_warned_about():
    """Grain warns of it where it is imported, which is a cell of a notebook for some."""
    code = "from jax._src import lib; lib.jaxlib_extension_version = 373; import audiolm_jax.data.batches"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not done.stderr
