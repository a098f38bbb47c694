"""A language model as judge, behind any OpenAI-compatible endpoint: both orders, validated, kept, counted, paid."""

import hashlib
import json
import os
import re
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field
from tqdm import tqdm

from fpo.evaluation.verdicts import Judged, Shown
from fpo.parameters import ParameterError, Parameters, one_line, real, text, whole

SYSTEM = (
    "You compare two answers to a question. Truth decides: prefer the answer whose statements are true, and count "
    "every false or invented statement against an answer, however well it is written. A long answer that invents "
    'things is worse than a short one that does not. Reply with one JSON object and nothing else: {"winner": "A"}, '
    '{"winner": "B"} or {"winner": "Tie"}.'
)
SHOWN: dict[str, Shown] = {"A": "first", "B": "second", "Tie": "tie"}


class JudgeError(RuntimeError):
    """The endpoint cannot be used as it is set up; the message says what to change."""


class Pair(NamedTuple):
    """A question and two answers to it."""

    question: str
    first: str
    second: str


class Verdict(BaseModel):
    """What a reply must hold; a reason beside it is allowed and not read."""

    model_config = ConfigDict(extra="forbid")

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


def request(endpoint: Endpoint, question: str, shown_first: str, shown_second: str) -> dict[str, Any]:
    """What is sent for one order of a pair."""
    parts = json.dumps({"question": question, "answer A": shown_first, "answer B": shown_second}, ensure_ascii=False)
    return {
        "model": endpoint.model,
        "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": parts}],
        "temperature": endpoint.temperature,
        "max_tokens": endpoint.max_tokens,
        "response_format": {"type": "json_object"},
    }


class Cache:
    """Replies by the content of what was sent and where, each on disk before the next call is made."""

    def __init__(self, path: Path) -> None:
        try:
            self._database = sqlite3.connect(path)
            self._database.execute("CREATE TABLE IF NOT EXISTS calls (key TEXT PRIMARY KEY, reply TEXT NOT NULL)")
            self._database.execute("SELECT key, reply FROM calls LIMIT 1")
            self._database.commit()
        except sqlite3.Error as error:
            raise ParameterError(f"calls = {str(path)!r}: cannot be used for replies ({one_line(error)})") from None

    @staticmethod
    def key(base_url: str, sent: dict[str, Any]) -> str:
        """The SHA-256 of an address and a request."""
        return hashlib.sha256(json.dumps([base_url, sent], sort_keys=True).encode()).hexdigest()

    def get(self, key: str) -> Verdict | None:
        """The verdict of an earlier call."""
        row = self._database.execute("SELECT reply FROM calls WHERE key = ?", (key,)).fetchone()
        return None if row is None else Verdict.model_validate_json(row[0])

    def put(self, key: str, verdict: Verdict) -> None:
        """Keep a verdict."""
        self._database.execute("INSERT OR REPLACE INTO calls VALUES (?, ?)", (key, verdict.model_dump_json()))
        self._database.commit()

    def close(self) -> None:
        """Close the file."""
        self._database.close()


def estimate(endpoint: Endpoint, sent: Sequence[dict[str, Any]]) -> tuple[float, str]:
    """What calls cost at most if each succeeds at once, in dollars, and in words; 3 characters count as a token.

    Without a price the words say so, and the dollars are 0. Tries after a failure cost extra.
    """
    read = sum(len(message["content"]) for each in sent for message in each["messages"]) / 3
    written = len(sent) * endpoint.max_tokens
    cost = (read * endpoint.price_in + written * endpoint.price_out) / 1e6
    price = f"${cost:.2f}" if endpoint.price_in or endpoint.price_out else "price unknown"
    tokens = f"about {read:,.0f} tokens read and at most {written:,} written"
    extra = f"tries after a failure are extra, at most {endpoint.retries} a call"
    return cost, f"{len(sent):,} calls, {tokens}: {price}; {extra}"


def _verdict(client: Any, sent: dict[str, Any]) -> Verdict:
    reply = client.chat.completions.create(**sent)
    choices = getattr(reply, "choices", None)
    if not choices or choices[0].message is None or not choices[0].message.content:
        raise ValueError("the reply holds no text")
    # Some models put their JSON into a fence.
    inner = re.sub(r"^\s*```(?:json)?\s*|\s*```\s*$", "", choices[0].message.content)
    return Verdict.model_validate_json(inner)


def _pause(state: Any) -> float:
    """Seconds before the next try: as many as the endpoint asks for, up to a minute; none after a reply that is bad."""
    error = state.outcome.exception()
    if isinstance(error, ValueError):
        return 0.0
    headers = getattr(getattr(error, "response", None), "headers", {})
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", told := headers.get(name, "")):
            return min(unit * float(told), 60.0)
    return min(0.5 * 2.0 ** (state.attempt_number - 1), 8.0)


def _orders(endpoint: Endpoint, pair: Pair) -> list[dict[str, Any]]:
    shown = ((pair.first, pair.second), (pair.second, pair.first))
    return [request(endpoint, pair.question, *both) for both in shown]


def judge_pairs(
    endpoint: Endpoint, pairs: Sequence[Pair], cache: Path, agreed_calls: int = 0, agreed_dollars: float = 0.0
) -> list[Judged]:
    """Every pair judged in both orders; equal answers are a tie without a call.

    Calls that were made before are read from the cache, and failed ones are made again: the same command goes on where
    it was stopped. A call that still fails after the endpoint's retries is an error of its pair.

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
        from tenacity import RetryError, Retrying, retry_if_exception, stop_after_attempt
    except ImportError as error:
        raise JudgeError(f"a language-model judge needs the extra judge: pip install 'fpo[judge]' ({error})") from None
    asked = [sent for pair in pairs if pair.first != pair.second for sent in _orders(endpoint, pair)]
    with closing(Cache(cache)) as kept:
        known = {Cache.key(endpoint.base_url, sent): sent for sent in asked}
        missing = {name: sent for name, sent in known.items() if kept.get(name) is None}
        dollars, words = estimate(endpoint, list(missing.values()))
        if len(missing) > agreed_calls or dollars > agreed_dollars:
            raise ParameterError(f"not agreed to: {words}; set agreed_calls and agreed_dollars to go on")
        key_refused = (openai.AuthenticationError, openai.PermissionDeniedError)
        refused = (openai.NotFoundError, openai.BadRequestError, openai.UnprocessableEntityError)
        # The client's own retries would multiply with these.
        client = openai.OpenAI(base_url=endpoint.base_url, api_key=key, timeout=endpoint.timeout, max_retries=0)
        tries = Retrying(
            stop=stop_after_attempt(endpoint.retries + 1),
            retry=retry_if_exception(
                lambda error: (
                    isinstance(error, ValueError | openai.APIError) and not isinstance(error, key_refused + refused)
                )
            ),
            wait=_pause,
        )
        failed: dict[str, str] = {}
        in_a_row = 0
        with closing(client), tqdm(total=len(known), initial=len(known) - len(missing), desc="verdicts") as bar:
            for name, sent in missing.items():
                try:
                    kept.put(name, tries(_verdict, client, sent))
                    in_a_row = 0
                except key_refused as error:
                    where = f"{endpoint.base_url} refuses the key in {endpoint.key_variable}"
                    raise JudgeError(f"{where}: {one_line(error)}") from None
                except refused as error:
                    where = f"{endpoint.base_url} refuses the request for model {endpoint.model!r}"
                    raise JudgeError(f"{where}: {one_line(error)}") from None
                except RetryError as error:
                    cause = error.last_attempt.exception()
                    failed[name] = f"{type(cause).__name__}: {one_line(cause)}"
                    in_a_row += 1
                    if in_a_row >= endpoint.patience:
                        raise JudgeError(f"{in_a_row} calls in a row failed, the last with {failed[name]}") from None
                bar.update()
        found = []
        for pair in pairs:
            if pair.first == pair.second:
                found.append(Judged("tie", "tie", "equal answers"))
                continue
            names = [Cache.key(endpoint.base_url, sent) for sent in _orders(endpoint, pair)]
            forward, backward = (None if (said := kept.get(name)) is None else SHOWN[said.winner] for name in names)
            found.append(Judged(forward, backward, "; ".join(failed[name] for name in names if name in failed)))
        return found
