"""The prompts of Qwen3-TTS: what stands before the audio, and the text beside it.

Every position holds an id of the talker's codec vocabulary, a text token, or both, whose vectors are added:

    text      instruction    <|im_start|> assistant \\n   pad    pad     pad ... pad      bos      t0     t1     t2 ...
    codec     -              -                           think  [       language ]     speaker  pad    bos    frame 0 ..

`[` and `]` are codec_think_bos and codec_think_eos; without a language it is nothink [ ] and nothing between them. The
text beside the frames is one token each, then tts_eos, then tts_pad for ever. With `text_first` all of it and tts_eos
stand over codec_pad before codec_bos, and tts_pad is beside every frame. To speak like a recording its codes are the
first frames, and its transcript the beginning of the text.

Ids of ours: text token n is TEXT_START + n, in the column of text; of the codec vocabulary, the codes of codebook 0
are those of `Vocab`, its end is END_AUDIO, and control id n, counted from the last code, is TEXT_START + n in the first
stream: languages, speakers and the marks above are what `Vocab` calls text here, and none of them is ever predicted.
As in `qwen_tts` 0.1.1 (`Qwen3TTSForConditionalGeneration.generate`, `generate_icl_prompt`).
"""

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np

from audiolm_jax.errors import InputError
from audiolm_jax.hub import files as huggingface
from audiolm_jax.sampling.rows import Row
from audiolm_jax.serialization.documents import Document
from audiolm_jax.serialization.pieces import Pieces
from audiolm_jax.serialization.text import clean, control
from audiolm_jax.serialization.vocab import END_AUDIO, PAD, TEXT_START

WHAT = "Qwen3-TTS"  # begins a message
ROLE, USER = "<|im_start|>assistant\n", "<|im_start|>user\n{}<|im_end|>\n"
MARKS = ("pad", "bos", "think", "nothink", "think_bos", "think_eos")  # codec_NAME_id of talker_config
TEXT_MARKS = ("pad", "bos", "eos")  # tts_NAME_token_id
AUTO = "auto"  # no language is named


@dataclasses.dataclass(frozen=True)
class Prompts:
    """A `generator.Conditioning`: texts, languages, speakers, instructions and recordings -> documents."""

    config: dict  # config.json
    pieces: Pieces
    codes: int  # of codebook 0

    takes = ("language", "instruction", "text_first")
    speaks = True

    @property
    def talker(self) -> dict:
        return huggingface.part(self.config, "talker_config", WHAT)

    @property
    def kind(self) -> str:
        """base (speaks like a recording), custom_voice (has speakers) or voice_design (is told how to speak)."""
        return str(self.config.get("tts_model_type") or "base")

    @property
    def languages(self) -> dict[str, int]:
        """Names and ids; dialects belong to speakers, and are none that can be asked for."""
        named = huggingface.part(self.talker, "codec_language_id", WHAT)
        return {name: number for name, number in named.items() if "dialect" not in name}

    @property
    def speakers(self) -> dict[str, int]:
        return huggingface.part(self.talker, "spk_id", WHAT)

    def codec_id(self, number: int) -> int:
        """An id of the talker's codec vocabulary, which is no code, as ours."""
        return END_AUDIO if number == self.talker["codec_eos_token_id"] else TEXT_START + number - self.codes

    def mark(self, name: str) -> int:
        return self.codec_id(self.talker[f"codec_{name}_id"])

    def text_mark(self, name: str) -> int:
        return TEXT_START + self.config[f"tts_{name}_token_id"]

    def text_ids(self, text: str) -> list[int]:
        return self.pieces.encode(text).tolist()

    def __call__(self, texts: Sequence[str], wanted: Sequence[Row]) -> list[dict[str, Any]]:
        return [{"document": self.of_row(row)} for row in wanted]

    def of_row(self, row: Row) -> Document:
        """The document of a request. Raises InputError for what this model cannot be asked."""
        if row.audio is not None and self.kind != "base":
            raise InputError(f"{WHAT}: a recording to speak like was given to a model of kind {self.kind!r}; base is")
        if (row.audio is not None) != bool(row.prompt_text):
            has, lacks = ("a transcript", "a recording") if row.prompt_text else ("a recording", "its transcript")
            raise InputError(
                f"{WHAT}: {has} to speak like was given without {lacks}; give both, audio and prompt_texts"
            )
        instruction = clean(row.instruction or "")
        if control(instruction):
            raise InputError(f"the instruction {instruction!r} holds control characters; give words")
        if instruction and (self.kind == "base" or self.config.get("tts_model_size") == "0b6"):
            raise InputError(f"{WHAT}: an instruction was given, but this model was not trained with any")
        return self.document(
            row.text,
            language=row.language or AUTO,
            speaker=row.speaker,
            instruction=instruction,
            transcript=row.prompt_text,
            text_first=self.kind != "base" if row.text_first is None else row.text_first,
        )

    def document(
        self,
        text: str,
        language: str = AUTO,
        speaker: str = "",
        instruction: str = "",
        transcript: str = "",
        text_first: bool = False,
    ) -> Document:
        """The segments before the audio, whose first frames are those of `transcript` if there is one.

        Raises InputError for a language or speaker that the checkpoint does not name, and a text without pieces.
        """
        spoken = [number for part in (transcript, text) for number in self.text_ids(clean(part))]
        if not self.text_ids(clean(text)):
            raise InputError(f"{WHAT}: the text {text!r} has no pieces; give words")
        spoken.append(self.text_mark("eos"))
        silent, opening = self.text_mark("pad"), self.mark("bos")
        before = self._control(language, speaker)
        beside = [silent] * (len(before) - 1) + [self.text_mark("bos")]
        pairs = [(PAD, n) for part in (instruction and USER.format(instruction), ROLE) for n in self.text_ids(part)]
        pairs += list(zip(before, beside, strict=True))
        if text_first:
            pairs += [(self.mark("pad"), number) for number in spoken] + [(opening, silent)]
            rest = [silent]
        else:
            pairs.append((opening, spoken[0]))
            rest = [*spoken[1:], silent]
        return ("given", np.array(pairs, np.int32)), ("beside", np.array(rest, np.int32))

    def example(self, text: str, speaker: str, codes_TQ: np.ndarray) -> Document:
        """A recording with its text, to train on: of a speaker that the checkpoint names, or of nobody."""
        named = speaker if speaker.lower() in self.speakers else ""
        return *self.document(text, speaker=named, text_first=self.kind != "base"), ("audio", codes_TQ)

    def _control(self, language: str, speaker: str) -> list[int]:
        """The ids of the language and the speaker, with the marks around them."""
        language, speaker = language.lower(), speaker.lower()
        number = None if language == AUTO else _named("language", language, self.languages)
        voice = [self.codec_id(_named("speaker", speaker, self.speakers))] if speaker else []
        dialect = huggingface.part(self.talker, "spk_is_dialect", WHAT).get(speaker)
        if dialect and language in (AUTO, "chinese"):
            number = self.talker["codec_language_id"][dialect]
        if number is None:
            marks = [self.mark(name) for name in ("nothink", "think_bos", "think_eos")]
        else:
            marks = [self.mark("think"), self.mark("think_bos"), self.codec_id(number), self.mark("think_eos")]
        return [*marks, *voice, self.mark("pad")]


def _named(what: str, name: str, known: dict[str, int]) -> int:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        names = ", ".join(([AUTO] if what == "language" else []) + sorted(known))
        raise InputError(f"{WHAT}: this model has no {what} {name!r}; {hint}it has {names or 'none'}")
    return known[name]
