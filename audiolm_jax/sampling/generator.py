"""From text, audio and melody to audio: the API of notebooks, of the command line and of the evaluation.

    generator = audiolm_jax.load("runs/delay")
    result = generator.generate("three one four", temperature=0.8)
    result.save("three.wav")  # in a notebook `result` is a player

    [one, two] = generator.generate(["three one", "four"], audio=[None, (voice, 44100)], seconds=3)

    for [samples] in generator.stream(["three one four"]):    # the same samples, as they are generated
        play(samples)

`generate` exhausts `stream`: the same executables on the same shapes, so their samples are equal bit for bit.
"""

import dataclasses
import difflib
import functools
import reprlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, overload

import jax
import numpy as np

from audiolm_jax.data import examples
from audiolm_jax.errors import InputError
from audiolm_jax.model import sharding
from audiolm_jax.model.spec import Spec
from audiolm_jax.model.transformer import Transformer
from audiolm_jax.sampling import DECODE_FRAMES, SamplingConfig, causal, masked, performance, rows
from audiolm_jax.sampling.background import in_background
from audiolm_jax.sampling.requests import Request, check, limits, prefilled_steps
from audiolm_jax.sampling.result import Result, table
from audiolm_jax.sampling.rows import Row
from audiolm_jax.sampling.windows import Windows
from audiolm_jax.serialization.text import UTF8, Texts, clean, control

SHOWN = 12  # names of speakers in a message
OWN = {  # fields of a Row that some families take -> which
    "melody": "those of musicgen-melody do",
    "language": "Qwen3-TTS does",
    "instruction": "Qwen3-TTS does",
    "text_first": "Qwen3-TTS does",
}


@dataclasses.dataclass
class Progress:
    """State after a chunk."""

    codes_BFQ: np.ndarray
    complete_B: np.ndarray  # number of leading frames that are final
    frames_B: np.ndarray  # number of frames; the limit until the end was predicted
    done_B: np.ndarray
    passes_B: np.ndarray


class Conditioning(Protocol):
    """The conditioning of a model with encoders, or with a prompt of its own (families/)."""

    takes: tuple[str, ...]  # fields of a Row that mean something to it, of `OWN`
    speaks: bool  # whether what is generated says the text

    def __call__(self, texts: Sequence[str], wanted: Sequence[Row]) -> list[dict[str, Any]]:
        """The conditioning fields of the `Request` of each row: encoded_EW, or document, unconditional and window.

        texts: clean ones of the rows, those of their prompts before them. Raises InputError for what it cannot use.
        """


class Generator:
    """A trained model with its Spec and codec.

    sampling: None: the default. context: positions that the model was trained on (None: unchecked). mesh: to run on
    (None: the first device); the weights are copied, so training may continue. conditioning: None for text that is part
    of the sequence. windows: for audio longer than the training segments (None: refused).

    Attribute speakers: the names that a row may have besides "" (`loading.load` takes them from the Spec); () for any.
    Attribute text: the text vocabulary, which must be set if that of the Spec is not bytes.
    """

    speakers: tuple[str, ...] = ()
    text: Texts = UTF8

    def __init__(
        self,
        model: Transformer,
        spec: Spec,
        codec: Any,
        sampling: SamplingConfig | None = None,
        context: int | None = None,
        mesh: jax.sharding.Mesh | None = None,
        conditioning: Conditioning | None = None,
        windows: Windows | None = None,
    ):
        vocab = spec.vocab
        if codec.codebooks < vocab.codebooks or codec.codebook_size != vocab.codebook_size:
            raise InputError(
                f"the codec has {codec.codebooks} codebooks of {codec.codebook_size} codes; "
                f"this model needs {vocab.codebooks} of {vocab.codebook_size}"
            )
        c = model.config
        if (conditioning is None) != (c.cross_width == 0 and not c.state_widths and not c.text_rows):
            raise InputError(
                f"model.cross_width is {model.config.cross_width} with{'out' if conditioning is None else ''} a text "
                "encoder; a model attends to the states of one, or there is none"
            )
        self.grid, self.vocab, self.codec, self.data_config = spec.grid, vocab, codec, spec.data
        self._tokenizer = spec.text.fingerprint
        self.conditioning, self.windows = conditioning, windows
        self.extra_frames = self.grid.framing.extra_frames(self.grid)  # generated and dropped
        self.mesh = mesh or sharding.single_device_mesh()
        self.sampling, self.context = sampling or SamplingConfig(), context
        self.model = performance.for_decoding(model, self.mesh, vocab)
        self._cold = True  # nothing is compiled yet

    def __repr__(self) -> str:
        return f"Generator({', '.join(f'{name}: {value}' for name, value in self._about().items())})"

    def _repr_html_(self) -> str:
        return table(self._about(), "Generator")

    def _about(self) -> dict[str, str]:
        c, codec, vocab = self.model.config, self.codec, self.vocab
        drawn = [
            f"{field.name} {reprlib.repr(getattr(self.sampling, field.name))}"
            for field in dataclasses.fields(SamplingConfig)
            if getattr(self.sampling, field.name) != field.default
        ]
        about = {
            "strategy": self.grid.config.strategy,
            "model": f"{c.layers} layers of width {c.width}",
            "parameters": f"{sum(x.size for x in jax.tree.leaves(self.model)):,}",
            "codec": f"{codec.name}, {codec.sample_rate} Hz, {codec.frame_rate:g} frames per second of "
            f"{vocab.codebooks} codes out of {vocab.codebook_size}",
            "sampling": ", ".join(drawn) or "default",
        }
        return about | ({"speakers": ", ".join(self.speakers)} if self.speakers else {})

    def request(self, text: str = "", **options: Any) -> Request:
        """A checked request for one row. options: fields of `Row` and of `SamplingConfig`. Raises what `requests`
        raises."""
        return self._requests([rows.row(text, options, self.sampling)])[0]

    def requests(self, texts: str | Sequence[str], **options: Any) -> list[Request]:
        """Checked requests, one per text.

        options: of `rows.COLUMNS` and fields of `SamplingConfig`, each a list with a value for every text, or one value
        for all. Without `seeds` row b has sampling.seed + b.

        Raises InputError for an unknown option or speaker, a value of another type, an empty text without a prompt, no
        or too many frames, a prompt without room after it, codes out of range, lists of unequal lengths.
        """
        return self._requests(rows.rows(texts, options, self.sampling))

    def _requests(self, wanted: Sequence[Row]) -> list[Request]:
        # Texts go through an encoder together.
        texts = [clean(f"{row.prompt_text} {row.text}") for row in wanted]
        for one in filter(control, texts):
            raise InputError(f"the text {one!r} holds control characters; give words")
        takes = getattr(self.conditioning, "takes", ())
        for name, who in OWN.items():
            if name not in takes and any(getattr(row, name) is not None for row in wanted):
                raise InputError(f"{name} was given, but this model takes none; {who}")
        if any(len(row.turns) for row in wanted) and self.conditioning is not None:
            raise InputError("turns were given, but this model has no text in its sequence to hear a dialogue in")
        if self.conditioning is None:
            conditions = [{"document": self._document(text, row)} for text, row in zip(texts, wanted, strict=True)]
        else:
            conditions = self.conditioning(texts, wanted)
        requests = [self._request(row, condition) for row, condition in zip(wanted, conditions, strict=True)]
        for request in requests:
            first = self.windows.first(request) if self.windows else request
            check(first, self.grid, self.vocab, self.context)
        return requests

    def _request(self, row: Row, condition: dict[str, Any]) -> Request:
        if row.frames is not None and row.seconds is not None:
            raise InputError("both frames and seconds were given; give one of them")
        sampling = row.sampling or self.sampling
        return Request(
            **{"document": ()} | condition,
            prompt_TQ=self._prompt(row.audio),
            frames=row.frames if row.seconds is None else self.frames_of(row.seconds),
            seed=sampling.seed if row.seed is None else row.seed,
            sampling=sampling,
        )

    def frames_of(self, seconds: float) -> int:
        """Number of frames in `seconds`. Raises InputError for less than one frame."""
        frames = round(seconds * self.codec.frame_rate) if np.isfinite(seconds) else 0
        if frames < 1:
            least = 1 / self.codec.frame_rate
            raise InputError(f"{seconds} seconds were asked for; one frame, {least} s, is the least")
        return frames

    @overload
    def generate(
        self, text: str = "", audio: Any = None, include_prompt: bool = False, melody: Any = None, **options: Any
    ) -> Result: ...

    @overload
    def generate(
        self, text: Sequence[str], audio: Any = None, include_prompt: bool = False, melody: Any = None, **options: Any
    ) -> list[Result]: ...

    def generate(
        self,
        text: str | Sequence[str] = "",
        audio: Any = None,
        include_prompt: bool = False,
        melody: Any = None,
        **options: Any,
    ) -> Result | list[Result]:
        """A Result for a text, or a list of them for a list of texts.

        audio: to continue: (samples, Hz) as soundfile reads them, a waveform at the codec's rate (floats [samples], or
        [2, samples] of a stereo codec), or codes (integers [frames, Q]). melody: to follow, a waveform or (waveform,
        Hz). For several texts both are lists, None for rows without.

        options, one value for all texts or a list with one for each:
          frames or seconds: the length with the prompt. Without them the model predicts the end.
          speakers: for {speaker} in the text template. prompt_texts: transcripts of `audio`.
          turns: the dialogue before, a list of (speaker, text, audio) for each text.
          languages, instructions (how to speak), text_first (whether all of the text comes before the audio): of some
            families.
          temperature, top_k, top_p, repetition_penalty, ... (a number, or a tuple with one per codebook), suppressed,
            guidance, max_frames, seed, ...: the fields of `SamplingConfig`. sampling: all of them at once. seeds: of
            the rows; by default seed + row.

        Raises what `requests` raises.
        """
        if isinstance(text, str):
            audio, melody = (None if one is None else [one] for one in (audio, melody))
            if options.get("turns") is not None:
                options["turns"] = [options["turns"]]
            return self.generate([text], audio, include_prompt, melody, **options)[0]
        for name, values in (("prompts", audio), ("melodies", melody)):
            if values is not None:
                options[name] = values
        return self.run(self.requests(text, **options), include_prompt)

    def stream(
        self, texts: str | Sequence[str], include_prompt: bool = False, **options: Any
    ) -> Iterator[list[np.ndarray]]:
        """Yields the new final samples of each text, float32 [samples] (maybe none); returns the Results.

        Flat, parallel and delay yield from the first chunks on; the other orders complete their first frame late.
        """
        return self.run_stream(self.requests(texts, **options), include_prompt)

    def run(self, requests: Sequence[Request], include_prompt: bool = False) -> list[Result]:
        """`generate` for requests, whose documents may have any segments."""
        stream = self.run_stream(requests, include_prompt)
        while True:
            try:
                next(stream)
            except StopIteration as finished:
                return finished.value

    def run_stream(self, requests: Sequence[Request], include_prompt: bool = False) -> Iterator[list[np.ndarray]]:
        """`stream` for requests."""
        started = time.perf_counter()
        Q = self.vocab.codebooks
        states = [self.codec.decode_init(1) for _ in requests]
        waveforms: list[list[np.ndarray]] = [[] for _ in requests]
        decoded_B = np.zeros(len(requests), int)
        nothing = np.zeros((0,) if self.codec.channels == 1 else (self.codec.channels, 0), np.float32)
        # Samples of the prompts that the codec has still to return, which are dropped.
        skip_B = [0 if include_prompt else self.codec.samples(len(request.prompt_TQ)) for request in requests]
        parts = self.windows and self.windows.progress(self.progress, requests, self.codec.hop)
        progress, decoder = None, self._decoder_ahead()
        for progress in parts or self.progress(requests):
            decoder()
            fresh = []
            for b in range(len(requests)):
                complete, done = int(progress.complete_B[b]), states[b] is not None and bool(progress.done_B[b])
                until = complete - complete % DECODE_FRAMES
                codes_1TQ, samples = progress.codes_BFQ[b : b + 1, :complete, :Q], []
                if until > decoded_B[b]:
                    more, states[b] = self.codec.decode_step(states[b], codes_1TQ[:, decoded_B[b] : until])
                    samples, decoded_B[b] = [more[0]], until
                if done:
                    last_1TQ = codes_1TQ[:, until:] if complete > until else None
                    rest, states[b] = self.codec.decode_end(states[b], last_1TQ), None
                    samples += [] if rest is None else [rest[0]]
                new = np.concatenate(samples, axis=-1) if samples else nothing
                new, skip_B[b] = new[..., skip_B[b] :], max(0, skip_B[b] - new.shape[-1])
                waveforms[b].append(new)
                fresh.append(new)
            if any(new.size for new in fresh):
                yield fresh
        seconds = time.perf_counter() - started
        return [
            Result(
                progress.codes_BFQ[b, : progress.frames_B[b], :Q].copy(),
                len(request.prompt_TQ),
                np.concatenate(waveforms[b], axis=-1),
                self.codec.sample_rate,
                request.frames is None
                and bool(progress.frames_B[b] < limits(request, self.grid, self.vocab, self.context)[0]),
                int(progress.passes_B[b]),
                seconds,
            )
            for b, request in enumerate(requests)
        ]

    def _decoder_ahead(self) -> Callable[[], None]:
        """Starts to compile the codec's decoder beside the model's programs; returns the function that waits for it."""
        warm = getattr(self.codec, "warm", None)
        if not self._cold or warm is None:
            return lambda: None
        return in_background(functools.partial(warm, DECODE_FRAMES))

    def progress(self, requests: Sequence[Request]) -> Iterator[Progress]:
        """Codes alone, chunk by chunk; the last one is the finished grid."""
        grid, count = self.grid, len(requests)
        if self.extra_frames:
            requests = [dataclasses.replace(r, frames=r.frames + self.extra_frames) for r in requests]
        # The last request fills the batch; its copies are dropped.
        requests = [*requests, *[requests[-1]] * performance.missing_rows(requests, self.model, grid, self.mesh)]
        common = (self.model, grid, self.vocab, requests)
        coarse, passes_B = None, np.ones(len(requests), int)
        if grid.causal_levels:
            chunks = causal.generate(*common, context=self.context, ahead=self._cold)
            first_B = np.array([prefilled_steps(len(request.prompt_TQ), grid) for request in requests])
            while (coarse_now := self._next(chunks)) is not None:
                self._cold = False
                coarse, state = coarse_now, coarse_now[1]
                # The prompt's pass predicts the first step, so steps and passes are equal in number.
                passes_B = np.asarray(state.step_B) - first_B
                if grid.causal_levels == grid.codebooks:
                    complete_B = causal.complete_frames(state, grid)
                    arrays = (np.asarray(x) for x in (state.codes_BFQ, state.frames_B, state.done_B))
                    codes_BFQ, frames_B, done_B = arrays
                    if self.extra_frames:
                        frames_B = frames_B - self.extra_frames
                        complete_B = np.minimum(complete_B, frames_B)
                        done_B = complete_B == frames_B
                    yield Progress(*(x[:count] for x in (codes_BFQ, complete_B, frames_B, done_B, passes_B)))
        if grid.causal_levels < grid.codebooks:
            with jax.set_mesh(self.mesh):
                codes_BFQ, frames_B = masked.generate(*common, coarse=coarse, context=self.context)
            passes_B = passes_B + sum(grid.iterations)
            codes_BFQ, frames_B, passes_B = (x[:count] for x in (codes_BFQ, frames_B, passes_B))
            yield Progress(codes_BFQ, frames_B, frames_B, np.ones(count, bool), passes_B)

    def _next(self, chunks: Iterator) -> Any:
        # Entered for each chunk: between them this thread is the caller's.
        with jax.set_mesh(self.mesh):
            return next(chunks, None)

    def _document(self, spoken: str, row: Row) -> tuple:
        if not spoken:
            if self.data_config.template and row.audio is None:
                raise InputError("the text is empty; give a text, or an audio prompt to continue without one")
            return ()
        said = []
        for speaker, words, audio in row.turns:
            said += [self._text(clean(words), speaker), ("audio", self._prompt(audio))]
        return (*said, self._text(spoken, row.speaker))

    def _text(self, spoken: str, speaker: str) -> tuple[str, np.ndarray]:
        """The text segment of these words by this speaker."""
        if self.speakers and speaker and speaker not in self.speakers:
            near = difflib.get_close_matches(speaker, self.speakers, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}? " if near else ""
            raise InputError(
                f"no speaker {speaker!r} was in the training; {hint}its {len(self.speakers)} names are "
                f"{', '.join(self.speakers[:SHOWN])}{', ...' if len(self.speakers) > SHOWN else ''}"
            )
        if not self.data_config.template:
            raise InputError(f"a text was given, {spoken!r}, but this model was trained without text (data.template)")
        if self.text.spec.fingerprint != self._tokenizer:
            raise InputError(
                f"the model was trained on pieces of the tokenizer with sha256 {self._tokenizer[:12]}, and none or "
                "another one is in Generator.text; `audiolm_jax.load` sets it"
            )
        return "text", self.text.encode(examples.prompt_text(self.data_config, spoken, speaker))

    def _prompt(self, prompt: Any) -> np.ndarray:
        Q = self.vocab.codebooks
        if prompt is None:
            return np.zeros((0, Q), np.int32)
        if rows.is_codes(prompt):
            return np.asarray(prompt).astype(np.int32)
        samples = rows.waveform(prompt, round(self.codec.sample_rate), self.codec.channels)
        return np.asarray(self.codec.encode(samples))[:, :Q]
