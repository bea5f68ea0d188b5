"""Audio longer than the training segments of a model, generated in overlapping windows.

As in audiocraft (`_generate_tokens` of its musicgen.py): a window is as long as a training segment, the next one begins
a stride later, and the frames in both are its prompt. The codes of all windows are one grid, decoded once. Conditions
that depend on time, such as a melody, are those of the window (`Request.window`).
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from audiolm_jax.errors import InputError
from audiolm_jax.sampling.requests import Request

STRIDE = 18.0  # seconds, in windows of 30: the prompt is 12 s (extend_stride of audiocraft)


@dataclasses.dataclass(frozen=True)
class Windows:
    """frames: of a window. stride: frames between the starts of two windows; a larger one is faster, with less context.

    Raises InputError for a stride outside 1..frames - 1.
    """

    frames: int
    stride: int

    def __post_init__(self) -> None:
        if not 1 <= self.stride < self.frames:
            raise InputError(f"windows of {self.frames} frames: a stride of {self.stride} must be 1..{self.frames - 1}")

    def starts(self, prompt: int, frames: int) -> list[int]:
        """First frame of every window of a row of `frames` frames that begins with a prompt of `prompt` frames."""
        start = 0
        while start + self.frames <= prompt:  # a window of the prompt alone
            start += self.stride
        starts = [start]
        while starts[-1] + self.frames < frames:
            starts.append(starts[-1] + self.stride)
        return starts

    def part(self, request: Request, n: int, codes_TQ: np.ndarray, hop: int) -> Request:
        """Window n of a request with the frames so far, `codes_TQ`. hop: samples of a frame."""
        starts = self.starts(len(request.prompt_TQ), request.frames)
        start = starts[n]
        if start == 0 and len(starts) == 1:
            return request
        # A seed for each window: random numbers are drawn by seed and step, and steps start again at 0.
        seed = int(np.random.SeedSequence((request.seed % 2**32, n)).generate_state(1)[0]) if n else request.seed
        return dataclasses.replace(
            request,
            prompt_TQ=codes_TQ[start:],
            frames=min(request.frames - start, self.frames),
            seed=seed,
            document=request.window(start * hop) if request.window else request.document,
        )

    def first(self, request: Request) -> Request:
        """The first window; validating it validates the request."""
        return request if request.frames is None else self.part(request, 0, request.prompt_TQ, 1)

    def progress(
        self, generate: Callable[[list[Request]], Iterator[Any]], requests: Sequence[Request], hop: int
    ) -> Iterator[Any]:
        """Runs `generate` (`Generator.progress`) window by window; yields the progress of the full requests. Finished
        rows take no part in later windows."""
        starts = [self.starts(len(request.prompt_TQ), request.frames) for request in requests]
        frames_B = np.array([request.frames for request in requests])
        complete_B = np.array([len(request.prompt_TQ) for request in requests])
        passes_B = np.zeros(len(requests), int)
        codes_BFQ = np.full((len(requests), frames_B.max(), requests[0].prompt_TQ.shape[1]), -1, np.int32)
        for request, codes_FQ in zip(requests, codes_BFQ, strict=True):
            codes_FQ[: len(request.prompt_TQ)] = request.prompt_TQ
        for n in range(max(map(len, starts))):
            rows = [b for b in range(len(requests)) if n < len(starts[b])]
            before_B = passes_B.copy()
            for now in generate([self.part(requests[b], n, codes_BFQ[b, : complete_B[b]], hop) for b in rows]):
                for row, b in enumerate(rows):
                    fresh = codes_BFQ[b, starts[b][n] :][: now.complete_B[row]]
                    fresh[:] = now.codes_BFQ[row, : len(fresh)]
                    complete_B[b] = max(complete_B[b], starts[b][n] + len(fresh))
                    passes_B[b] = before_B[b] + now.passes_B[row]
                yield dataclasses.replace(
                    now,
                    codes_BFQ=codes_BFQ,
                    complete_B=complete_B.copy(),
                    frames_B=frames_B,
                    done_B=complete_B == frames_B,
                    passes_B=passes_B.copy(),
                )
