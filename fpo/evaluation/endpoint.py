"""A language model as judge, behind any OpenAI-compatible endpoint: both orders, validated, kept, counted, paid."""

import json
import os
import re
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, Field
from tqdm import tqdm

from fpo.evaluation.verdicts import Judged, Shown
from fpo.llm.labels import Cache
from fpo.parameters import ParameterError, Parameters, one_line, real, text, whole

SYSTEM = (
    "You compare two answers to a question. Truth decides: prefer the answer whose statements are true, and count "
    "every false or invented statement against an answer, however well it is written. A long answer that invents "
    'things is worse than a short one that does not. Reply with one JSON object and nothing else: {"winner": "A"}, '
    '{"winner": "B"} or {"winner": "Tie"}.'
)
SHOWN: dict[str, Shown] = {"A": "first", "B": "second", "Tie": "tie"}
# What another try would not change, by its status.
KEY = "{0.base_url} refuses the key in {0.key_variable}"
REQUEST = "{0.base_url} refuses the request for model {0.model!r}"
REFUSED = {400: REQUEST, 401: KEY, 403: KEY, 404: REQUEST, 422: REQUEST}


class JudgeError(RuntimeError):
    """The endpoint cannot be used as it is set up; the message says what to change."""


class Pair(NamedTuple):
    """A question and two answers to it."""

    question: str
    first: str
    second: str


class Verdict(BaseModel, extra="forbid"):
    """What a reply must hold; a reason beside it is allowed and not read."""

    winner: Literal["A", "B", "Tie"]
    reason: str = ""


class Endpoint(Parameters):
    """Where the judge is asked, and at which price. Prices are not known beforehand: they have no default but 0."""

    base_url: str = Field(
        "",
        pattern=r"^(https?://\S+)?$",
        description="where the endpoint is",
        json_schema_extra={"allowed": "empty, or an address that begins with http:// or https://"},
    )
    model: str = text("meta-llama/Llama-3.3-70B-Instruct-Turbo", "the judge; the default is the paper's", "a name")
    key_variable: str = text("OPENAI_API_KEY", "where the key is", "the name of an environment variable")
    temperature: float = real(0.0, 0.0, 2.0, "of the judge; the paper's is 0")
    max_tokens: int = whole(100, 1, 4096, "of a reply")
    timeout: float = real(60.0, 0.05, 3600.0, "seconds for a reply")
    retries: int = whole(4, 0, 20, "further tries of a call that fails or whose reply is no verdict")
    patience: int = whole(5, 1, 1000, "calls in a row that may fail before the run stops")
    price_in: float = real(0.0, 0.0, 1e4, "dollars for a million tokens that are read")
    price_out: float = real(0.0, 0.0, 1e4, "dollars for a million tokens that are written")


def request(endpoint: Endpoint, pair: Pair) -> dict[str, Any]:
    """What is sent for a pair in this order."""
    parts = json.dumps({"question": pair.question, "answer A": pair.first, "answer B": pair.second}, ensure_ascii=False)
    return {
        "model": endpoint.model,
        "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": parts}],
        "temperature": endpoint.temperature,
        "max_tokens": endpoint.max_tokens,
        "response_format": {"type": "json_object"},
    }


def estimate(endpoint: Endpoint, sent: Sequence[dict[str, Any]]) -> tuple[float, str]:
    """What calls cost at most if each succeeds at once, in dollars, and in words; 3 characters count as a token.

    Without a price the words say so, and the dollars are 0. Tries after a failure cost extra.
    """
    read = sum(len(message["content"]) for each in sent for message in each["messages"]) / 3
    written = len(sent) * endpoint.max_tokens
    cost = (read * endpoint.price_in + written * endpoint.price_out) / 1e6
    price = f"${cost:.2f}" if endpoint.price_in or endpoint.price_out else "price unknown"
    tokens = f"about {read:,.0f} tokens read and at most {written:,} written"
    extra = f"; tries after a failure are extra, at most {endpoint.retries} a call"
    return cost, f"{len(sent):,} calls, {tokens}: {price}{extra}"


def _verdict(client: Any, sent: dict[str, Any], left: int) -> Verdict:
    """A reply that is a verdict, after at most `left` further tries in all.

    The client tries again where no reply comes (no connection, no answer in time, 408, 409, 429, from 500 on), and
    waits as long as it is told to; here it is asked again where the reply is no verdict.

    Raises
    ------
    ValueError
        If the last reply is none. Errors of the client pass.
    """
    while True:
        reply = client.with_options(max_retries=left).chat.completions.with_raw_response.create(**sent)
        left -= reply.retries_taken + 1
        try:
            content = json.loads(reply.text)["choices"][0]["message"]["content"]
            # Some models put their JSON into a fence.
            return Verdict.model_validate_json(re.sub(r"^\s*```(?:json)?\s*|\s*```\s*$", "", content))
        except (ValueError, LookupError, TypeError) as error:
            if left < 0:
                raise ValueError(f"the reply is no verdict ({one_line(error)})") from None


def _orders(endpoint: Endpoint, pair: Pair) -> dict[str, dict[str, Any]]:
    """What is sent of a pair, by its key: first as it stands, then turned."""
    both = [request(endpoint, each) for each in (pair, Pair(pair.question, pair.second, pair.first))]
    return {Cache.key([endpoint.base_url, sent]): sent for sent in both}


def judge_pairs(
    endpoint: Endpoint, pairs: Sequence[Pair], cache: Path, agreed_calls: int = 0, agreed_dollars: float = 0.0
) -> list[Judged]:
    """Every pair judged in both orders; equal answers are a tie without a call.

    Calls that were made before are read from the cache, and failed ones are made again: the same command goes on where
    it was stopped. A call that still fails after the endpoint's retries is an error of its pair. So a pair takes two
    calls, and at most 2 (1 + `endpoint.retries`) requests whatever fails.

    Parameters
    ----------
    endpoint : Endpoint
        Where, at which price, and how patiently.
    pairs : sequence of Pair
        What is judged.
    cache : path
        A SQLite file, made if it is not there.
    agreed_calls, agreed_dollars
        What the caller has agreed to. Nothing is sent if the estimate is above either; tries after a failure, at most
        `endpoint.retries` a call, are not in it.

    Raises
    ------
    ParameterError
        If there is no endpoint or key, the cache cannot be opened, or more is needed than was agreed to; the message
        then holds the estimate.
    JudgeError
        If the endpoint refuses key, model or request, or too many calls in a row fail.
    """
    if not endpoint.base_url:
        raise ParameterError("base_url = '': a language-model judge needs the address of an endpoint")
    if not (key := os.environ.get(endpoint.key_variable)):
        raise ParameterError(f"key_variable = {endpoint.key_variable!r}: this environment variable is not set")
    try:
        import openai
    except ImportError as error:
        raise JudgeError(f"a language-model judge needs the extra judge: pip install 'fpo[judge]' ({error})") from None
    orders = {pair: _orders(endpoint, pair) for pair in pairs if pair.first != pair.second}
    asked = {name: sent for both in orders.values() for name, sent in both.items()}
    failed: dict[str, str] = {}
    in_a_row = 0
    with closing(Cache(cache, "calls")) as kept:
        missing = {name: sent for name, sent in asked.items() if kept.get(name) is None}
        dollars, words = estimate(endpoint, list(missing.values()))
        if len(missing) > agreed_calls or dollars > agreed_dollars:
            raise ParameterError(f"not agreed to: {words}; set agreed_calls and agreed_dollars to go on")
        client = openai.OpenAI(base_url=endpoint.base_url, api_key=key, timeout=endpoint.timeout)
        with closing(client), tqdm(total=len(asked), initial=len(asked) - len(missing), desc="verdicts") as bar:
            for name, sent in missing.items():
                try:
                    kept.put(name, _verdict(client, sent, endpoint.retries).model_dump_json())
                    in_a_row = 0
                except (openai.APIError, ValueError) as error:
                    failed[name] = f"{type(error).__name__}: {one_line(error)}"
                    if what := REFUSED.get(getattr(error, "status_code", 0)):
                        raise JudgeError(f"{what.format(endpoint)}: {one_line(error)}") from None
                    in_a_row += 1
                    if in_a_row >= endpoint.patience:
                        raise JudgeError(f"{in_a_row} calls in a row failed, the last with {failed[name]}") from None
                bar.update()
        found = []
        for pair in pairs:
            if (both := orders.get(pair)) is None:
                found.append(Judged("tie", "tie", "equal answers"))
                continue
            told = [None if (reply := kept.get(name)) is None else SHOWN[json.loads(reply)["winner"]] for name in both]
            found.append(Judged(told[0], told[1], "; ".join(failed[name] for name in both if name in failed)))
        return found
