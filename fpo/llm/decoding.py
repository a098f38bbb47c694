"""What is asked of a causal language model: continuations in a batch, and log-likelihoods in chunks.

Sequences are lists of token ids. P prompts, N continuations of each, T new tokens, V words. Every function takes a
transformers model and decides nothing about adapters or modes: the caller does.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

Ids = Sequence[int]

NEAR = (64, 1024)  # words looked at when drawing one; more are sorted only for rows where these hold too little mass


def uniforms(seed: int, purpose: str, index: int, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform numbers in [0, 1) that depend on their address alone, so that batching and resuming change none of them.

    Examples
    --------
    >>> bool((uniforms(0, "candidate", 3, (2, 4)) == uniforms(0, "candidate", 3, (2, 4))).all())
    True
    """
    return np.random.default_rng([seed, int.from_bytes(purpose.encode(), "big"), index]).random(shape, dtype=np.float32)


class GrowingLayer(DynamicLayer):
    """Keys and values of one layer in a buffer with room for what is still to come.

    transformers' own layer concatenates at every token, which cost a quarter of decoding on a CPU.
    """

    def __init__(self, spare: int):
        super().__init__()
        self.spare = spare

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put the new tokens' keys and values behind the others; returns all of them."""
        start = self.get_seq_length()
        stop = start + key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.buffers = [
                states.new_empty(*states.shape[:2], stop + self.spare, states.shape[-1])
                for states in (key_states, value_states)
            ]
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:stop] = states
        self.keys, self.values = (buffer[:, :, :stop] for buffer in self.buffers)
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Copy each row."""
        stop = self.get_seq_length()
        self.buffers = [buffer.repeat_interleave(repeats, dim=0) for buffer in self.buffers]
        self.keys, self.values = (buffer[:, :, :stop] for buffer in self.buffers)


def padded(rows: Sequence[Ids], side: str, fill: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of unequal length as one matrix with its mask, both (rows, longest)."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), fill, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, values in enumerate(rows):
        columns = slice(longest - len(values), longest) if side == "left" else slice(0, len(values))
        ids[row, columns] = torch.tensor(values, dtype=torch.long)
        mask[row, columns] = 1
    return ids.to(device), mask.to(device)


def _prefill(model: PreTrainedModel, prompts: Sequence[Ids], copies: int, spare: int) -> tuple:
    """The prompts read once: hidden states (P, L, h), mask, positions, and a cache with `copies` rows for each."""
    ids, mask = padded(prompts, "left", 0, model.device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = Cache(layers=[GrowingLayer(spare) for _ in range(model.config.num_hidden_layers)])
    hidden = model.base_model(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
    ).last_hidden_state
    if copies > 1:
        cache.batch_repeat_interleave(copies)
    return hidden, mask, positions, cache


def draw(logits: torch.Tensor, uniform: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """One word a row by inversion: the words in falling order of probability, cut where they hold `top_p` in all.

    The word taken is the first whose cumulated probability exceeds `uniform` times that of all words kept; a word is
    kept if those before it hold less than top_p. Shapes: logits (n, V), uniform (n,); result (n,).

    Examples
    --------
    >>> draw(torch.tensor([[0.0, 2.0, 1.0]] * 2), torch.tensor([0.1, 0.9]), temperature=1.0, top_p=0.9)
    tensor([1, 2])
    """
    mass = torch.softmax(logits.float() / temperature, dim=-1)
    drawn = torch.empty(len(mass), dtype=torch.long, device=mass.device)
    rows, whole = torch.arange(len(mass), device=mass.device), mass.shape[-1]
    # Where all words are kept, their mass is known beforehand, and those that come after the one drawn need no order.
    total = mass.sum(-1, dtype=torch.float64) if top_p == 1 else None
    for near in (min(near, whole) for near in (*NEAR, whole)):
        values, words = torch.topk(mass[rows], near, dim=-1)
        cumulated = values.cumsum(-1, dtype=torch.float64)
        values = values * (cumulated - values < top_p)
        # Rounding may leave the sum of all words just short of top_p = 1.
        enough = (cumulated[:, -1] >= top_p) | (near == whole)
        cumulated = values.cumsum(-1, dtype=torch.float64)
        goal = uniform[rows] * (cumulated[:, -1] if total is None else total[rows])
        enough |= (cumulated[:, -1] > goal) & (total is not None)
        rank = (cumulated <= goal[:, None]).sum(-1)
        last_kept = (values > 0).sum(-1) - 1
        word = words.gather(1, torch.minimum(rank, last_kept)[:, None])[:, 0]
        drawn[rows[enough]] = word[enough]
        rows = rows[~enough]
        if not len(rows):
            break
    return drawn


@dataclass(frozen=True)
class Continuations:
    """`tokens[i][j]`: the ids of continuation j of prompt i, its end mark included if it came to one.

    `logprobs[i][j]` is the sum of log pi(token) over all words, at temperature 1 or another.
    """

    tokens: list[list[list[int]]]
    logprobs: list[list[float]]


@torch.inference_mode()
def decode(
    model: PreTrainedModel,
    prompts: Sequence[Ids],
    uniform: np.ndarray,
    ends: Sequence[int],
    *,
    min_new_tokens: int,
    temperature: float,
    top_p: float,
    scored_at: float = 1.0,
) -> Continuations:
    """Continue each prompt N times, all of them as one left-padded batch whose prompts are read once.

    Parameters
    ----------
    model : transformers model
        Causal, ready to be called.
    prompts : P lists of ids
        Of any lengths.
    uniform : array (P, N, T)
        The random stream: one number for each token (see `draw`).
    ends : ids that end a continuation
        Not drawn among the first `min_new_tokens`.
    min_new_tokens : int
        Least length, the end mark not counted.
    temperature, top_p : float
        As in `draw`.
    scored_at : float
        Temperature of the log-probabilities.
    """
    count, copies, longest = uniform.shape
    hidden, mask, positions, cache = _prefill(model, prompts, copies, longest)
    head = model.get_output_embeddings()
    logits = head(hidden[:, -1]).repeat_interleave(copies, 0)
    mask, position = mask.repeat_interleave(copies, 0), positions[:, -1:].repeat_interleave(copies, 0)
    stream = torch.from_numpy(uniform.reshape(count * copies, longest)).to(model.device)
    tokens = torch.zeros(count * copies, longest, dtype=torch.long, device=model.device)
    logprobs = torch.zeros_like(tokens, dtype=torch.float32)
    mark = torch.tensor(list(ends), device=model.device)
    lengths = torch.full((count * copies,), longest, device=model.device)
    for step in range(longest):
        logits = logits.float()
        scores = logits / scored_at if scored_at != 1 else logits
        whole = scores.logsumexp(-1)
        if step < min_new_tokens:
            logits[:, mark] = -torch.inf
        word = draw(logits, stream[:, step], temperature, top_p)
        tokens[:, step] = word
        logprobs[:, step] = scores.gather(1, word[:, None])[:, 0] - whole
        lengths = torch.where(torch.isin(word, mark) & (lengths == longest), step + 1, lengths)
        if step + 1 == longest or bool((lengths <= step + 1).all()):
            break
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        position = position + 1
        step_out = model.base_model(
            input_ids=word[:, None], attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True
        )
        logits = head(step_out.last_hidden_state[:, -1])
    counted = torch.arange(longest, device=model.device) < lengths[:, None]
    sums = (logprobs * counted).sum(-1).view(count, copies).tolist()
    rows = [row[:length] for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True)]
    return Continuations([rows[i * copies : (i + 1) * copies] for i in range(count)], sums)


def _chunks(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _nll(
    model: PreTrainedModel, hidden: torch.Tensor, targets: torch.Tensor, chunk: int, temperature: float = 1.0
) -> torch.Tensor:
    """-log pi(target) for hidden states (n, h), `chunk` rows at a time so that n x V logits are never held."""
    head = model.get_output_embeddings()
    parts = [
        F.cross_entropy(head(hidden[rows]).float() / temperature, targets[rows], reduction="none")
        for rows in _chunks(len(targets), chunk)
    ]
    return torch.cat(parts) if parts else hidden.new_zeros(0)


@torch.inference_mode()
def split_nll(
    model: PreTrainedModel, prompts: Sequence[Ids], responses: Sequence[Ids], chunk: int
) -> list[tuple[float, float]]:
    """Sums of -log pi over each prompt's tokens but the first, which nothing precedes, and over its one response's."""
    rows = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
    ids, mask = padded(rows, "right", 0, model.device)
    hidden = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    real = mask[:, 1:].bool()
    values = torch.zeros_like(real, dtype=torch.float32)
    values[real] = _nll(model, hidden[:, :-1][real], ids[:, 1:][real], chunk)
    starts = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
    before = torch.arange(1, ids.shape[1], device=model.device) < starts[:, None]
    return list(zip((values * before).sum(-1).tolist(), (values * ~before).sum(-1).tolist(), strict=True))


@torch.inference_mode()
def response_nll(
    model: PreTrainedModel,
    prompts: Sequence[Ids],
    responses: Sequence[Sequence[Ids]],
    chunk: int,
    temperature: float = 1.0,
) -> list[list[float]]:
    """Sum of -log pi(response | prompt) for N responses to each of P prompts; the prompts are read once."""
    copies = len(responses[0])
    rows = [list(row) for group in responses for row in group]
    ids, mask = padded([row or [0] for row in rows], "right", 0, model.device)
    real = mask.bool() & torch.tensor([bool(row) for row in rows], device=model.device)[:, None]
    hidden, before, positions, cache = _prefill(model, prompts, copies, ids.shape[1])
    first = hidden[:, -1:].repeat_interleave(copies, 0)
    if ids.shape[1] > 1:
        position = (
            positions[:, -1:].repeat_interleave(copies, 0) + 1 + torch.arange(ids.shape[1] - 1, device=ids.device)
        )
        rest = model.base_model(
            input_ids=ids[:, :-1],
            attention_mask=torch.cat([before.repeat_interleave(copies, 0), mask[:, :-1]], 1),
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        first = torch.cat([first, rest], 1)
    values = torch.zeros_like(ids, dtype=torch.float32)
    values[real] = _nll(model, first[real], ids[real], chunk, temperature)
    sums = values.sum(-1).tolist()
    return [sums[i * copies : (i + 1) * copies] for i in range(len(responses))]


def backward_nll(
    model: PreTrainedModel,
    prompts: Sequence[Ids],
    responses: Sequence[Ids],
    chunk: int,
    *,
    whole: bool,
    share: float | Sequence[float],
) -> list[float]:
    """Add the gradient of `share` times the sum of the sequences' mean NLL to the model's trainable parameters.

    With several shares each sequence has its own. `whole` counts the prompt's tokens too, otherwise the response's
    alone. Cross-entropy is differentiated chunk by chunk up to the hidden states, then the model once. Returns each
    sequence's mean NLL.
    """
    rows = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
    ids, mask = padded(rows, "right", 0, model.device)
    counted = mask[:, 1:].bool()
    if not whole:
        starts = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
        counted &= torch.arange(1, ids.shape[1], device=model.device) >= starts[:, None]
    hidden = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    token_weights = (counted / counted.sum(-1, keepdim=True))[counted]
    owners = counted.nonzero()[:, 0]
    shares = torch.tensor(share, dtype=token_weights.dtype, device=ids.device).expand(len(rows))[owners]
    states, targets = hidden[:, :-1][counted].detach(), ids[:, 1:][counted]
    values, gradient = torch.zeros_like(token_weights), torch.empty_like(states)
    head = model.get_output_embeddings()
    for part in _chunks(len(targets), chunk):
        piece = states[part].requires_grad_()
        loss = F.cross_entropy(head(piece).float(), targets[part], reduction="none")
        (gradient[part],) = torch.autograd.grad((loss * token_weights[part] * shares[part]).sum(), piece)
        values[part] = loss.detach()
    whole_gradient = torch.zeros_like(hidden)
    whole_gradient[:, :-1][counted] = gradient
    hidden.backward(whole_gradient)
    return torch.zeros(len(rows), device=ids.device).index_add_(0, owners, values * token_weights).tolist()
