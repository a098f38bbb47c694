"""Batched decoding, likelihoods and gradients against one sequence at a time."""

import numpy as np
import pytest
import torch

from fpo.llm import Policy, settings
from fpo.llm.decoding import backward_nll, decode, draw, response_nll, split_nll, uniforms


@pytest.fixture(scope="module")
def policy(tiny):
    """A tiny policy whose adapter is not idle, in float64."""
    made = Policy(settings(**tiny))
    made.model.double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in made.adapter.values():
            value.copy_(torch.randn(value.shape, generator=generator, dtype=torch.float64) * 0.1)
    return made


def some_prompts(generator, count):
    return [generator.integers(3, 49000, size=generator.integers(2, 15)).tolist() for _ in range(count)]


def draw_slowly(logits, uniform, temperature, top_p):
    scaled = logits.astype(np.float64) / temperature
    mass = np.exp(scaled - scaled.max())
    mass /= mass.sum()
    order = np.argsort(-mass, kind="stable")
    held, total = [], 0.0
    for word in order:
        if total >= top_p:
            break
        held.append(word)
        total += mass[word]
    reached = 0.0
    for word in held:
        reached += mass[word]
        if reached > uniform * total:
            return word
    return held[-1]


@pytest.mark.parametrize("words", [5, 300, 3000])
@pytest.mark.parametrize("sharpness", [0.01, 1.0, 8.0])
def test_draw_is_inversion(words, sharpness):
    """Flat to sharp distributions: the few most likely words suffice, or many more are needed."""
    generator = np.random.default_rng(words)
    for top_p in (0.3, 0.9, 1.0):
        logits = generator.normal(size=(40, words)) * sharpness
        uniform = generator.random(40)
        found = draw(torch.tensor(logits), torch.tensor(uniform), 0.8, top_p).tolist()
        expected = [draw_slowly(row, u, 0.8, top_p) for row, u in zip(logits, uniform, strict=True)]
        # draw works in float32: a number that falls within rounding of a boundary may go either way.
        assert np.mean(np.array(found) == expected) >= (0.95 if sharpness < 1 else 1.0)


def test_draws_have_the_nucleus_distribution():
    logits = torch.tensor([[2.0, 1.0, 0.0, -3.0]])
    mass = torch.softmax(logits / 0.8, -1)[0]
    kept = mass * torch.tensor([1.0, 1.0, 0.0, 0.0])  # the first two hold 0.9 and more
    assert float(mass[0]) < 0.9 < float(mass[:2].sum())
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(1))
    found = draw(logits.expand(20_000, -1), uniform, 0.8, 0.9)
    shares = torch.bincount(found, minlength=4) / 20_000
    assert torch.allclose(shares, kept / kept.sum(), atol=0.015)


def test_uniforms_depend_on_their_address_alone():
    values = {
        address: uniforms(*address, (3, 4)).tobytes()
        for address in [(0, "candidate", 0), (0, "candidate", 1), (1, "candidate", 0), (0, "reference", 0)]
    }
    assert len(set(values.values())) == len(values)
    assert all(uniforms(*address, (3, 4)).tobytes() == kept for address, kept in values.items())


@torch.inference_mode()
def write_slowly(model, ids, stream, ends, least, temperature, top_p):
    """One sequence, the whole of it read again at every token."""
    tokens, total = [], 0.0
    for step, uniform in enumerate(stream):
        logits = model(input_ids=torch.tensor([[*ids, *tokens]])).logits[0, -1]
        free = logits.clone()
        if step < least:
            free[ends] = -torch.inf
        word = int(draw_slowly(free.numpy(), uniform, temperature, top_p))
        total += float(torch.log_softmax(logits, -1)[word])
        tokens.append(word)
        if word in ends:
            break
    return tokens, total


@pytest.mark.parametrize("least", [0, 3])
def test_decoding_in_a_batch(policy, least):
    generator = np.random.default_rng(5)
    prompts = some_prompts(generator, 4)
    stream = generator.random((4, 3, 8), dtype=np.float32)
    # Ends that are likely, so that rows stop at different places.
    ends = list(range(0, 49152, 5))
    kwargs = {"min_new_tokens": least, "temperature": 0.8, "top_p": 0.9}
    made = decode(policy.model, prompts, stream, ends, **kwargs)
    lengths = set()
    for i, ids in enumerate(prompts):
        for j in range(3):
            tokens, total = write_slowly(policy.model, ids, stream[i, j], ends, least, 0.8, 0.9)
            assert made.tokens[i][j] == tokens
            assert made.logprobs[i][j] == pytest.approx(total, abs=1e-4)
            lengths.add(len(tokens))
    assert len(lengths) > 2 and min(lengths) > least


def nll_slowly(model, ids, start):
    logits = model(input_ids=torch.tensor([ids])).logits[0]
    values = -torch.log_softmax(logits[:-1], -1)[torch.arange(len(ids) - 1), ids[1:]]
    return float(values[max(start - 1, 0) :].sum())


@torch.inference_mode()
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_likelihoods_in_chunks(policy, chunk):
    generator = np.random.default_rng(7)
    prompts = some_prompts(generator, 3)
    responses = [some_prompts(generator, 4) for _ in prompts]
    responses[1][2] = []  # an empty response has probability 1
    responses[0][0] = [5]
    split = split_nll(policy.model, prompts, [group[0] for group in responses], chunk)
    after = response_nll(policy.model, prompts, responses, chunk)
    for i, ids in enumerate(prompts):
        assert split[i][0] == pytest.approx(nll_slowly(policy.model, ids, 0), rel=1e-5)
        assert split[i][1] == pytest.approx(after[i][0], rel=1e-5)
        for j, response in enumerate(responses[i]):
            whole = nll_slowly(policy.model, [*ids, *response], len(ids)) if response else 0.0
            assert after[i][j] == pytest.approx(whole, rel=1e-5, abs=1e-9)


@torch.inference_mode()
def test_the_base_is_the_policy_without_its_adapter(policy, tiny):
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny["policy"], dtype=torch.float64)
    ids = torch.tensor([[5, 6, 7, 8]])
    with policy.base():
        off = policy.model(input_ids=ids).logits
    on = policy.model(input_ids=ids).logits
    assert torch.allclose(off, base(input_ids=ids).logits, atol=1e-12)
    assert not torch.allclose(on, off, atol=1e-3)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("chunk", [4, 1000])
def test_gradient_in_chunks(policy, whole, chunk):
    generator = np.random.default_rng(11)
    prompts, responses = some_prompts(generator, 3), some_prompts(generator, 3)
    policy.model.zero_grad()
    found = backward_nll(policy.model, prompts, responses, chunk, whole=whole, share=0.25)
    made = {key: value.grad.clone() for key, value in policy.adapter.items()}
    policy.model.zero_grad()
    for prompt, response, value in zip(prompts, responses, found, strict=True):
        ids = torch.tensor([[*prompt, *response]])
        labels = ids.clone()
        if not whole:
            labels[0, : len(prompt)] = -100
        loss = policy.model(input_ids=ids, labels=labels).loss
        assert value == pytest.approx(float(loss.detach()), rel=1e-5)
        (0.25 * loss).backward()
    for key, value in policy.adapter.items():
        assert torch.allclose(made[key], value.grad, rtol=1e-4, atol=1e-6), key
