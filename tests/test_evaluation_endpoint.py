"""The language-model judge against a real server over HTTP: faults, prices, both orders, and a run that is killed."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing

import pytest
from tools.judge_server import FAULTS, JudgeServer
from tools.llm import start

from fpo.evaluation import endpoint as endpoints
from fpo.evaluation import verdicts
from fpo.evaluation.endpoint import Endpoint, JudgeError, Pair, judge_pairs
from fpo.parameters import ParameterError

openai = pytest.importorskip("openai", reason="the judge over HTTP needs the extra judge: pip install 'fpo[judge]'")

PAIRS = [Pair(f"Question {i}?", f"right {i}", f"wrong {i}") for i in range(4)]
KEY = "FPO_TEST_KEY"


def honest(question: str, a: str, b: str) -> str:
    return "Tie" if a[:5] == b[:5] else "A" if a.startswith("right") else "B"


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv(KEY, "a key")


def at(server: JudgeServer, **changes) -> Endpoint:
    return Endpoint(base_url=server.base_url, model="tiny", key_variable=KEY, **changes)


def outcomes(judged):
    return [each.outcome for each in judged]


def test_both_orders_of_every_pair_are_asked_once(tmp_path):
    pairs = [
        *PAIRS,
        Pair("Same?", "equal", "equal"),
        Pair("Two?", "wrong", "right"),
        Pair("Tie?", "right a", "right b"),
    ]
    with JudgeServer(honest) as server:
        judged = judge_pairs(at(server), pairs, tmp_path / "calls", agreed_calls=100)
        assert outcomes(judged) == ["first"] * 4 + ["tie", "second", "tie"]
        asked = [tuple(json.loads(each).values()) for each in server.seen]
        unequal = [pair for pair in pairs if pair.first != pair.second]
        assert sorted(asked) == sorted(order for p in unequal for order in ((*p,), (p.question, p.second, p.first)))
        again = judge_pairs(at(server), pairs, tmp_path / "calls")  # no call is agreed to, and none is made
        assert again == judged and len(server.seen) == len(asked)
    found = verdicts.counts(judged)
    assert (found["wins"], found["losses"], found["ties"], found["errors"]) == (4, 1, 2, 0)


def test_a_judge_that_always_says_first_decides_nothing(tmp_path):
    with JudgeServer(lambda question, a, b: "A") as server:
        judged = judge_pairs(at(server), PAIRS, tmp_path / "calls", agreed_calls=8)
    found, bias = verdicts.counts(judged), verdicts.position_bias(judged)
    assert (found["wins"], found["losses"], found["ties"], found["splits"]) == (0, 0, 0, 4)
    assert bias["share"] == 1 and bias["two_sided"] < 0.01


def test_a_swapped_order_is_a_split_and_no_win(tmp_path):
    """Of one pair the judge mixes up the letters, once."""
    with JudgeServer(lambda q, a, b: "B" if (q, a) == ("Question 2?", "right 2") else honest(q, a, b)) as server:
        judged = judge_pairs(at(server), PAIRS, tmp_path / "calls", agreed_calls=8)
    assert outcomes(judged) == ["first", "first", "split", "first"]


@pytest.mark.parametrize("fault", [*FAULTS, "503", "429", "500"])
def test_a_passing_fault_leaves_no_trace(fault, tmp_path):
    with JudgeServer(honest, {1: fault, 2: "503"}) as server:
        judged = judge_pairs(at(server, timeout=5.0), PAIRS, tmp_path / "calls", agreed_calls=8)
        assert outcomes(judged) == ["first"] * 4
        assert len(server.seen) == 10 and len(set(server.seen)) == 8


@pytest.mark.parametrize("fault", ["malformed", "half", "503", "prose"])
def test_a_lasting_fault_is_an_error_and_never_a_tie(fault, tmp_path):
    """The first call and its two retries fail; the next run asks for that one alone."""
    with JudgeServer(honest, dict.fromkeys(range(3), fault)) as server:
        judged = judge_pairs(at(server, retries=2), PAIRS, tmp_path / "calls", agreed_calls=8)
        assert outcomes(judged) == ["error", "first", "first", "first"] and judged[0].forward is None
        found = verdicts.counts(judged)
        assert (found["wins"], found["ties"], found["errors"]) == (3, 0, 1)
        assert judged[0].reason and len(server.seen) == 3 + 7
        with pytest.raises(ParameterError, match="not agreed to: 1 calls"):
            judge_pairs(at(server), PAIRS, tmp_path / "calls")
        healed = judge_pairs(at(server), PAIRS, tmp_path / "calls", agreed_calls=1)
        assert outcomes(healed) == ["first"] * 4 and len(server.seen) == 11


@pytest.mark.parametrize(
    "faults", [("malformed", "503"), ("503", "prose"), ("half", "empty", "429"), ("not json",) * 4]
)
def test_retries_of_different_faults_are_counted_together(faults, tmp_path):
    """A reply that is bad and a server that is busy are two tries, not two tries of two."""
    with JudgeServer(honest, dict(enumerate(faults))) as server:
        own = at(server, retries=len(faults) - 1)
        judged = judge_pairs(own, PAIRS, tmp_path / "calls", agreed_calls=8)
        assert outcomes(judged) == ["error", "first", "first", "first"]
        assert len(server.seen) == len(faults) + 7


@pytest.mark.parametrize(
    "status, message", [("401", "refuses the key in FPO_TEST_KEY"), ("404", "model 'tiny'"), ("400", "a planted 400")]
)
def test_a_refusal_ends_the_run_at_once(status, message, tmp_path):
    with JudgeServer(honest, {-1: status}) as server:
        with pytest.raises(JudgeError, match=message):
            judge_pairs(at(server), PAIRS, tmp_path / "calls", agreed_calls=8)
        assert len(server.seen) == 1


def test_an_endpoint_that_is_down_is_given_up(tmp_path):
    with JudgeServer(honest, {-1: "503"}) as server:
        with pytest.raises(JudgeError, match="3 calls in a row failed, the last with InternalServerError"):
            judge_pairs(at(server, retries=1, patience=3), PAIRS, tmp_path / "calls", agreed_calls=8)
        assert len(server.seen) == 6


def test_nothing_is_sent_before_the_cost_is_agreed_to(tmp_path):
    with JudgeServer(honest) as server:
        own = at(server, price_in=1000.0, price_out=1000.0)
        sent = [endpoints.request(own, pair) for pair in PAIRS]
        dollars, words = endpoints.estimate(own, sent * 2)
        for calls, budget in ((7, 1e6), (8, 0.9 * dollars)):
            with pytest.raises(ParameterError, match=r"not agreed to: 8 calls, about .* read .*: \$.*at most 4 a call"):
                judge_pairs(own, PAIRS, tmp_path / "calls", agreed_calls=calls, agreed_dollars=budget)
        assert not server.seen and "8 calls" in words
        with pytest.raises(ParameterError, match="8 calls, .*: price unknown; tries"):
            judge_pairs(at(server), PAIRS, tmp_path / "calls", agreed_calls=7)
        judge_pairs(own, PAIRS, tmp_path / "calls", agreed_calls=8, agreed_dollars=1.01 * dollars)
        assert set(server.keys) == {"Bearer a key"}
        # Other settings are other calls; another address may be another model.
        with pytest.raises(ParameterError, match="8 calls"):
            judge_pairs(own.replace(temperature=1.0), PAIRS, tmp_path / "calls")
        with pytest.raises(ParameterError, match="8 calls"):
            judge_pairs(own.replace(base_url=server.base_url + "/"), PAIRS, tmp_path / "calls")


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    with pytest.raises(ParameterError, match="base_url = '': a language-model judge needs"):
        judge_pairs(Endpoint(key_variable=KEY), PAIRS, tmp_path / "calls")
    with pytest.raises(ParameterError, match="base_url = 'ftp://x'"):
        Endpoint(base_url="ftp://x")
    monkeypatch.delenv(KEY)
    with pytest.raises(ParameterError, match="key_variable = 'FPO_TEST_KEY': this environment variable is not set"):
        judge_pairs(Endpoint(base_url="http://127.0.0.1:9/v1", key_variable=KEY), PAIRS, tmp_path / "calls")
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv(KEY, "a key")
    (tmp_path / "text").write_text("no database, but a text that is longer than nothing\n" * 40)
    with closing(sqlite3.connect(tmp_path / "other")) as other:
        other.execute("CREATE TABLE calls (key TEXT, reply TEXT)")
    for calls in (tmp_path / "nowhere" / "calls", tmp_path, tmp_path / "text", tmp_path / "other"):
        with pytest.raises(ParameterError, match="calls = .*no file that calls can be kept in"):
            judge_pairs(Endpoint(base_url="http://127.0.0.1:9/v1", key_variable=KEY), PAIRS, calls, agreed_calls=8)


JUDGE = """
import sys
from pathlib import Path
from fpo.evaluation.endpoint import Endpoint, Pair, judge_pairs
pairs = [Pair(f"Question {i}?", f"right {i}", f"wrong {i}") for i in range(4)]
own = Endpoint(base_url=sys.argv[1], model="tiny", key_variable="FPO_TEST_KEY")
judge_pairs(own, pairs, Path(sys.argv[2]), agreed_calls=8)
"""


def test_a_killed_run_goes_on_without_a_lost_or_repeated_call(tmp_path):
    """Killed while the sixth call waits for its reply: five replies are kept, and only the sixth is asked once more."""
    with JudgeServer(honest, hold=5) as server:
        first = start(["-c", JUDGE, server.base_url, str(tmp_path / "calls")])
        assert server.arrived.wait(timeout=300)
        first.kill()
        first.communicate()
        server.release.set()
        with pytest.raises(ParameterError, match="not agreed to: 3 calls"):
            judge_pairs(at(server), PAIRS, tmp_path / "calls")
        judged = judge_pairs(at(server), PAIRS, tmp_path / "calls", agreed_calls=3)
        assert outcomes(judged) == ["first"] * 4
        assert len(server.seen) == 9 and len(set(server.seen)) == 8
        assert server.seen.count(server.seen[5]) == 2
