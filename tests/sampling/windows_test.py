"""Pieces longer than a window: the same codes as a loop of prompts, whole, streamed, in batches; needs no torch."""

import numpy as np
import pytest

import audiolm_jax
from audiolm_jax.errors import InputError
from audiolm_jax.sampling.requests import Request
from audiolm_jax.sampling.windows import STRIDE, Windows
from experiments.colab import random_musicgen

FRAMES, STEP = 24, 14  # of a window


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    folder = tmp_path_factory.mktemp("windows")
    random_musicgen.write(folder)
    made = audiolm_jax.load(folder)
    assert made.windows == Windows(30 * 100, round(STRIDE * 100))
    made.windows = Windows(FRAMES, STEP)
    return made


def by_hand(generator, text, frames, seed, prompt):
    """One window after the other, each with the last frames of what there is as its prompt."""
    codes, start, windows = prompt, 0, generator.windows
    generator.windows, n = None, 0
    try:
        while len(codes) < frames:
            seeds = [seed if n == 0 else int(np.random.SeedSequence((seed, n)).generate_state(1)[0])]
            end = min(start + FRAMES, frames)
            made = generator.generate(text, audio=codes[start:], frames=end - start, seeds=seeds, include_prompt=True)
            codes = np.concatenate([codes[:start], made.codes_TQ])
            start, n = start + STEP, n + 1
    finally:
        generator.windows = windows
    return codes


def test_long_pieces_are_windows_and_short_ones_as_without(generator):
    """In one batch: three windows, and one."""
    texts, frames = ["rock", "loud piano"], [45, FRAMES]
    prompt = generator.generate("rock", frames=5).codes_TQ
    results = generator.generate(texts, audio=[prompt, None], frames=frames, include_prompt=True, seeds=[7, 8])
    nothing = np.zeros((0, 4), np.int32)
    for b, (result, start) in enumerate(zip(results, (prompt, nothing), strict=True)):
        assert result.codes_TQ.shape == (frames[b], 4)
        assert result.waveform.shape == (frames[b] * generator.codec.hop,)
        np.testing.assert_array_equal(result.codes_TQ, by_hand(generator, texts[b], frames[b], 7 + b, start))
        # One sequence for the codec, which does not know of windows.
        whole = np.asarray(generator.codec.decode(result.codes_TQ))
        np.testing.assert_allclose(result.waveform, whole, atol=1e-5)
    assert results[0].prompt_frames == 5 and not results[0].ended
    # The second window of a piece draws other numbers than the first.
    codes = results[0].codes_TQ
    assert (codes[FRAMES : FRAMES + 7] != codes[FRAMES - STEP : FRAMES - STEP + 7]).any()
    # Passes: a pass for each step of each window, its prompt's included.
    windows, generator.windows = generator.windows, None
    one = generator.generate(texts[1], frames=FRAMES, seeds=[8])
    np.testing.assert_array_equal(one.waveform, results[1].waveform)
    assert results[1].passes == one.passes < results[0].passes < 3 * one.passes
    generator.windows = windows


def test_a_stream_goes_on(generator):
    chunks = [samples for [samples] in generator.stream(["rock"], frames=45)]
    whole = generator.generate("rock", frames=45).waveform
    np.testing.assert_array_equal(np.concatenate(chunks), whole)
    assert len(chunks) > 1 and len(chunks[0]) < FRAMES * generator.codec.hop


def test_a_prompt_longer_than_a_window(generator):
    prompt = generator.generate("rock", frames=40).codes_TQ
    result = generator.generate("rock", audio=prompt, frames=50)
    assert result.prompt_frames == 40 and len(result.codes_TQ) == 50
    np.testing.assert_array_equal(result.codes_TQ[:40], prompt)
    assert len(result.waveform) == 10 * generator.codec.hop
    for frames in (39, 40):
        with pytest.raises(InputError, match="it must leave room"):
            generator.generate("rock", audio=prompt, frames=frames)


def test_where_windows_begin():
    windows = Windows(FRAMES, STEP)
    for prompt, frames, starts in (
        (0, 1, [0]),
        (0, 24, [0]),
        (0, 25, [0, 14]),
        (23, 38, [0, 14]),
        (24, 39, [14, 28]),
        (40, 50, [28]),
    ):
        assert windows.starts(prompt, frames) == starts
    for stride in (0, 24):
        with pytest.raises(InputError, match="a stride of"):
            Windows(24, stride)


def test_the_states_of_a_window_are_those_from_its_first_sample_on():
    codes = np.zeros((30, 4), np.int32)
    request = Request((), codes[:0], 50, 3, window=lambda start: (("states", np.full((1, 2), start)),))
    windows = Windows(FRAMES, STEP)
    parts = [windows.part(request, n, codes, 2000) for n in range(3)]
    for n, part in enumerate(parts):
        [(kind, states_EW)] = part.document
        assert kind == "states" and states_EW.tolist() == [[n * STEP * 2000] * 2]
        assert (part.seed == 3) == (n == 0)
    short = Request((), codes[:0], 24, 3, window=request.window)
    assert windows.part(short, 0, codes[:0], 2000) is short
