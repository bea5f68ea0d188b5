"""The decoder of `transformers` (torch), with its own caches: what `bench.py` measures against.

A step does what `generate` does in one: the model, guidance, the 250 most likely codes, a draw, the delay pattern; and
nothing else that `generate` does around it.
"""

import warnings

import numpy as np
import torch
import transformers
from transformers import DynamicCache, EncoderDecoderCache, StaticCache

TOP_K = 250


def make(sizes: dict, seed: int = 0) -> transformers.MusicgenForCausalLM:
    """Random weights as at birth, float32, on the CPU."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transformers.MusicgenForCausalLM(transformers.MusicgenDecoderConfig(**sizes)).eval()


def tensors(model: transformers.MusicgenForCausalLM) -> dict[str, np.ndarray]:
    """Its weights under the names of a published checkpoint."""
    return {f"decoder.{name}": x.detach().numpy() for name, x in model.state_dict().items()}


class Decoder:
    """Rows that stand at a position, and steps from there on.

    states: [M, E, D] and valid [M, E], M being twice the rows with guidance. block: keys and values [slots, H, K] that
    every layer and row has after the position of the prompt. end: positions at most. kind: "dynamic" is what `generate`
    takes by itself (it grows by copying), "static" is as long as it will get, "compiled" is static in torch.compile.
    """

    def __init__(self, model, kind: str, states, valid, block, rows: int, guidance: float, end: int):
        self.model, self.kind, self.guidance, self.rows = model, kind, guidance, rows
        self.device, dtype = model.device, model.dtype
        self.states = torch.tensor(states, dtype=dtype, device=self.device)
        self.valid = torch.tensor(valid, dtype=torch.long, device=self.device)
        config = model.config
        self.books, self.pad = config.num_codebooks, config.pad_token_id
        # In the order of `Cache.update`: layer by layer, [M, H, slots, K].
        own = DynamicCache(config=config) if kind == "dynamic" else StaticCache(config=config, max_cache_len=end)
        self.cache = EncoderDecoderCache(own, DynamicCache(config=config))
        self.forward = model
        if kind == "compiled":
            self.forward = torch.compile(model, mode="reduce-overhead", fullgraph=False)
        with torch.inference_mode():
            start = torch.full((self.rows * self.books, 1), self.pad, device=self.device)
            self.logits = self.model_step(start, model)
            keys, values = (
                torch.tensor(x, dtype=dtype, device=self.device).transpose(0, 1).expand(len(states), -1, -1, -1)
                for x in block
            )
            for layer in range(config.num_hidden_layers):
                own.update(keys.contiguous(), values.contiguous(), layer)
        self.length = 1 + len(block[0])
        # The codes that the delay pattern sets: none in the middle of a piece.
        self.pattern = torch.full((self.rows * self.books, end + 1), -1, device=self.device)

    @torch.inference_mode()
    def reset(self) -> None:
        """Back to where it stood at first."""
        for layer in self.cache.self_attention_cache.layers:
            if self.kind == "dynamic":
                layer.keys, layer.values = layer.keys[:, :, : self.length], layer.values[:, :, : self.length]
            else:
                layer.cumulative_length.fill_(self.length)

    def model_step(self, ids: torch.Tensor, forward=None) -> torch.Tensor:
        """Logits [M*Q, V] after ids [rows*Q, 1]."""
        if self.guidance != 1:
            ids = ids.repeat((2, 1))
        if self.kind == "compiled" and forward is None:
            torch.compiler.cudagraph_mark_step_begin()
        out = (forward or self.forward)(
            input_ids=ids,
            encoder_hidden_states=self.states,
            encoder_attention_mask=self.valid,
            past_key_values=self.cache,
            use_cache=True,
        )
        return out.logits[:, -1]

    def draw(self, logits: torch.Tensor, at: int) -> torch.Tensor:
        """ids [rows*Q, 1] from the logits of a step."""
        if self.guidance != 1:
            conditional, unconditional = logits.split(len(logits) // 2)
            logits = unconditional + (conditional - unconditional) * self.guidance
        logits = logits.float()
        least = torch.topk(logits, min(TOP_K, logits.shape[-1]))[0][..., -1, None]
        probabilities = torch.softmax(logits.masked_fill(logits < least, -float("inf")), dim=-1)
        ids = torch.multinomial(probabilities, num_samples=1)
        set_ids = self.pattern[:, at, None]
        return torch.where(set_ids == -1, ids, set_ids)

    def run(self, steps: int) -> None:
        """Draws and takes that many steps."""
        self.reset()
        logits = self.logits
        with torch.inference_mode():
            for n in range(steps):
                logits = self.model_step(self.draw(logits, self.length + n))
            if self.device.type == "cuda":
                torch.cuda.synchronize()

    def follow(self, codes_BNQ: np.ndarray) -> np.ndarray:
        """Logits [M, Q, V] float32 after these codes instead of drawn ones."""
        self.reset()
        with torch.inference_mode():
            for n in range(codes_BNQ.shape[1]):
                logits = self.model_step(torch.tensor(codes_BNQ[:, n].reshape(-1, 1), device=self.device))
            logits = logits.float().cpu().numpy()
        return logits.reshape(-1, self.books, logits.shape[-1])
