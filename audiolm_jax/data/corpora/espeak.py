"""The espeak-ng speech synthesiser, reached through ctypes.

The library and its data come from the wheel `espeakng-loader`; it is licensed GPLv3 and is therefore only loaded
at run time, never linked or copied. It keeps global state (voice, random numbers) and is not thread safe: use
one `Engine` per process.
"""

import ctypes
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from audiolm_jax.errors import InputError

_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS; the retrieval mode dead-locks in pool workers
_DONT_EXIT = 0x8000  # espeakINITIALIZE_DONT_EXIT
_UTF8 = 1
_RATE, _PITCH, _RANGE = 1, 3, 4  # espeak_PARAMETER
_END_OF_LIST, _WORD = 0, 1  # espeak_EVENT_TYPE


class _Event(ctypes.Structure):
    """`espeak_EVENT` of speak_lib.h, espeak-ng 1.52."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    )


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True)
class Speech:
    """waveform: float32 [samples] in [-1, 1]; starts: for each spoken word (character offset, seconds)."""

    waveform: np.ndarray
    sample_rate: int
    starts: tuple[tuple[int, float], ...]


class Engine:
    """One espeak-ng instance; make it once per process."""

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError as error:
            raise InputError(
                "the synthetic corpus needs the package espeakng-loader, which is not installed: install it, "
                "or choose corpus.name = folder or tfds"
            ) from error
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        data_path = str(espeakng_loader.get_data_path()).encode()
        self.sample_rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, data_path, _DONT_EXIT)
        if self.sample_rate <= 0:
            raise InputError(f"espeak-ng could not start with its data in {data_path.decode()}")
        self._variants = Path(data_path.decode()) / "voices" / "!v"
        self._blocks: list[np.ndarray] = []
        self._starts: list[tuple[int, float]] = []
        self._callback = _CALLBACK(self._receive)  # kept: ctypes does not hold it alive
        self._library.espeak_SetSynthCallback(self._callback)
        self._library.espeak_Info.restype = ctypes.c_char_p
        self.version = self._library.espeak_Info(None).decode()

    def _receive(self, samples, count, events):
        if samples and count > 0:
            self._blocks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while events[index].type != _END_OF_LIST:
            if events[index].type == _WORD:
                self._starts.append((events[index].text_position - 1, events[index].audio_position / 1000))
            index += 1
        return 0

    def speak(
        self, text: str, voice: str, seed: int, rate: int = 175, pitch: int = 50, pitch_range: int = 50
    ) -> Speech:
        """Speaks `text`. `voice` is an espeak name such as "en-us+f3"; rate in words per minute.

        Equal calls in the same order after a fresh start give equal samples: the library carries state from one
        utterance to the next beyond its random seed.

        Raises:
          InputError: the installed library has no such voice (it would silently go on with the previous one).
        """
        library = self._library
        _, _, variant = voice.partition("+")
        known = not variant or (self._variants / variant).is_file()  # an unknown variant is dropped without an error
        if not known or library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise InputError(f"espeak-ng has no voice {voice!r}; accents and variants are listed in its data folder")
        library.espeak_SetParameter(_RATE, rate, 0)
        library.espeak_SetParameter(_PITCH, pitch, 0)
        library.espeak_SetParameter(_RANGE, pitch_range, 0)
        library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        self._blocks.clear()
        self._starts.clear()
        data = text.encode()
        status = library.espeak_Synth(ctypes.c_char_p(data), ctypes.c_size_t(len(data) + 1), 0, 1, 0, _UTF8, None, None)
        if status != 0 or not self._blocks:
            raise InputError(f"espeak-ng gave no speech for the text {text!r} with voice {voice!r}")
        waveform = np.concatenate(self._blocks).astype(np.float32) / 32768
        return Speech(waveform, self.sample_rate, tuple(self._starts))
