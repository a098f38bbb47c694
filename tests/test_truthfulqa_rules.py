"""The chapter on truth and its judges with other answers, other judges, and a language model over HTTP."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from tools.judge_server import JudgeServer
from tools.verdicts import play

import fpo.llm
from fpo import results
from fpo.evaluation import endpoint
from fpo.evaluation.questions import load_questions
from fpo.evaluation.verdicts import Judged
from fpo.parameters import ParameterError

STORED = results.stored_run
BANK = load_questions("packaged:heldout")
TRUE = {text for question in BANK for text in question.correct}
FALSE = {text for question in BANK for text in question.incorrect}


class Encoder:
    """Features that know which reference answers are right: first right, then wrong, then anything else."""

    def __init__(self, settings):
        pass

    def features(self, texts, prompts=None):
        places = [0 if text in TRUE else 1 if text in FALSE else 2 for text in texts]
        return torch.nn.functional.one_hot(torch.tensor(places), 384).float()


@pytest.fixture
def verdicts(monkeypatch, tmp_path):
    weight = torch.zeros(5, 385, dtype=torch.float64)
    weight[:, 0], weight[:, 1] = 2.0, -2.0
    known = STORED("truthfulqa/judge") | {"judges": weight.tolist()}
    monkeypatch.setattr(results, "stored_run", lambda name: known if name == "truthfulqa/judge" else STORED(name))
    monkeypatch.setattr(fpo.llm, "RewardModel", Encoder)

    def of(right, vague=(), bank=BANK, **values):
        """Each arm gives the right answer to so many of the questions, else a wrong one; some say nothing to any."""
        for arm, count in right.items():
            texts = {q.id: q.correct[0] if i < count else q.incorrect[0] for i, q in enumerate(bank)}
            texts = dict.fromkeys(texts, "Who knows.") if arm in vague else texts
            content = {"arm": arm, "answers": texts, "cut": []}
            (tmp_path / f"{arm}.json").write_text(json.dumps(content))
        given = {"answers": str(tmp_path), "arms": list(right), "calls": str(tmp_path / "calls"), "figures": False}
        return play("truthfulqa", tmp_path / "results.json", **given | values)

    return of


@pytest.fixture
def five(tmp_path):
    """A CSV in the form of TruthfulQA's with five questions."""
    with open(tmp_path / "five.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Question", "Best Answer", "Correct Answers", "Incorrect Answers"])
        for q in BANK[:5]:
            writer.writerow([q.text, q.correct[0], "; ".join(q.correct), "; ".join(q.incorrect)])
    return str(tmp_path / "five.csv")


def test_questions_come_from_a_csv(verdicts, five):
    bank = load_questions(five)
    assert [q.id for q in bank] == [f"truthfulqa-00{i}" for i in range(1, 6)]
    found, content = verdicts({"relaxed": 5, "standard": 0}, bank=bank, questions=five)
    assert content["results"]["questions"] == 5 and content["parameters"]["questions"] == five
    for judge in ("truth", "similarity"):
        assert content["results"]["references"][judge]["pairs"] == 5
        assert content["results"]["pairs"][f"{judge}_relaxed_standard"]["wins"] == 5
    # Five of five do not leave one half out.
    assert found["truth-relaxed"] == found["similarity-relaxed"] == found["ranking"] == "open"


def test_a_policy_that_tells_the_truth_is_found_by_both(verdicts):
    found, content = verdicts({"relaxed": 80, "standard": 10, "base": 0}, vague=["base"])
    for judge in ("truth", "similarity"):
        assert found[f"{judge}-relaxed"] == found[f"{judge}-references"] == found[f"{judge}-referee"] == "new"
        assert content["results"]["ranking"][judge] == "relaxed, base, standard"
    assert found["agreement"] == found["ranking"] == "new"
    assert found["language-model"] == "open"
    kappa = content["results"]["agreement"]
    assert kappa["kappa"] == kappa["low"] == kappa["high"] == 1


def test_a_ranking_is_open_where_pairs_are_and_fails_where_the_judges_part(verdicts):
    found, content = verdicts({"relaxed": 45, "standard": 40})
    assert content["results"]["ranking"]["truth"] == content["results"]["ranking"]["similarity"]
    assert found["ranking"] == "open"
    turned = results.stored_run("truthfulqa/judge")
    turned["judges"] = (-torch.tensor(turned["judges"])).tolist()
    found, _ = verdicts({"relaxed": 80, "standard": 10})
    assert found["ranking"] == "does not hold"


def test_a_policy_that_lies_is_found_by_both(verdicts):
    found, _ = verdicts({"relaxed": 5, "standard": 79})
    assert found["truth-relaxed"] == found["similarity-relaxed"] == "does not hold"


def test_a_tie_is_a_win_of_neither(verdicts):
    """Standard wins 40 questions of 84 and ties on the rest: not most, though relaxed wins none."""
    found, content = verdicts({"relaxed": 5, "standard": 45})
    assert found["truth-relaxed"] == found["similarity-relaxed"] == found["ranking"] == "open"
    row = content["results"]["pairs"]["truth_relaxed_standard"]
    assert (row["wins"], row["ties"], row["losses"]) == (0, 44, 40) and row["high"] < 0.5 and row["losses_low"] < 0.5
    untied = content["results"]["untied"]["truth_relaxed_standard"]
    assert untied["pairs"] == 40 and untied["low"] > 0.5
    # To this encoder all texts of the study are alike: no seed moves, and none has fallen.
    assert found["truth-fall"] == found["similarity-fall"] == "open"
    assert content["results"]["seeds"]["truth"]["lower"] == 0 == content["results"]["seeds"]["truth"]["wins"]


@pytest.mark.parametrize("judge, verdict, split", [("honest", "new", 0), ("first", "does not hold", 70)])
def test_a_language_model_is_asked_over_http(judge, verdict, split, verdicts, monkeypatch):
    pytest.importorskip("openai", reason="the judge over HTTP needs the extra judge: pip install 'fpo[judge]'")
    monkeypatch.setenv("FPO_TEST_KEY", "a key")
    says = {"honest": lambda q, a, b: "A" if a in TRUE else "B", "first": lambda q, a, b: "A"}[judge]
    with JudgeServer(says) as server:
        given = {"base_url": server.base_url, "key_variable": "FPO_TEST_KEY"}
        with pytest.raises(ParameterError, match="not agreed to: 140 calls"):
            verdicts({"relaxed": 80, "standard": 10}, **given)
        assert not server.seen
        found, content = verdicts({"relaxed": 80, "standard": 10}, **given, agreed_calls=140)
        assert len(server.seen) == 140
    row = content["results"]["model"]["relaxed_standard"]
    assert found["language-model"] == verdict
    assert (row["wins"], row["splits"], row["ties"], row["errors"]) == (70 - split, split, 14, 0)


def trust(text):
    """A right answer above one that says nothing, and that above a wrong one."""
    return 2 if text in TRUE else 0 if text in FALSE else 1


def test_a_cost_is_agreed_to_for_all_pairs_at_once_and_before_any_work(verdicts, five, monkeypatch):
    """Of five questions 4, 5 and 5 pairs differ; each is asked in both orders, and one is there twice."""
    pytest.importorskip("openai", reason="the judge over HTTP needs the extra judge: pip install 'fpo[judge]'")

    def unused(settings):
        raise AssertionError("an offline judge was loaded before the cost was agreed to")

    with JudgeServer(lambda q, a, b: "A" if trust(a) > trust(b) else "B") as server:
        given = {"base_url": server.base_url, "key_variable": "FPO_TEST_KEY", "questions": five}
        given |= {"right": {"relaxed": 5, "standard": 1, "base": 0}, "vague": ["base"], "bank": load_questions(five)}
        with monkeypatch.context() as patch:
            patch.setattr(fpo.llm, "RewardModel", unused)
            patch.delenv("FPO_TEST_KEY", raising=False)
            with pytest.raises(ParameterError, match="this environment variable is not set"):
                verdicts(**given, agreed_calls=26)
            patch.setenv("FPO_TEST_KEY", "a key")
            with pytest.raises(ParameterError, match="not agreed to: 26 calls, .*price unknown"):
                verdicts(**given, agreed_calls=25)
        assert not server.seen
        monkeypatch.setenv("FPO_TEST_KEY", "a key")
        found, content = verdicts(**given, agreed_calls=26)
        assert len(server.seen) == 26
    rows = content["results"]["model"]
    assert {name: (row["wins"], row["losses"], row["ties"]) for name, row in rows.items()} == {
        "relaxed_standard": (4, 0, 1),
        "relaxed_base": (5, 0, 0),
        "standard_base": (1, 4, 0),
    }
    assert found["language-model"] == "new"


@pytest.mark.parametrize("judge", ["honest", "liar", "undecided", "failing"])
def test_a_language_model_enters_ranking_figure_and_agreement(judge, verdicts, monkeypatch):
    """As `test_a_cost_is_agreed_to_...`, on all questions and without a server."""

    def says(pair):
        if judge == "failing":
            return Judged(None, "tie", "a planted failure")
        if judge == "undecided" or pair.first == pair.second:
            return Judged("tie", "tie")
        better = trust(pair.first) > trust(pair.second)
        return Judged("first", "second") if better == (judge == "honest") else Judged("second", "first")

    monkeypatch.setattr(endpoint, "judge_pairs", lambda asked, pairs, *agreed: [says(pair) for pair in pairs])
    given = {"base_url": "http://127.0.0.1:9/v1", "figures": judge in ("honest", "failing")}
    found, content = verdicts({"relaxed": 80, "standard": 10, "base": 0}, vague=["base"], **given)
    verdict = {"honest": "new", "liar": "does not hold"}.get(judge, "open")
    assert found["ranking"] == found["model-agreement"] == verdict
    claim = next(claim for claim in content["claims"] if claim["id"] == "truthfulqa-ranking")
    assert "which of the three judges" in claim["statement"] and "that the language model decides" in claim["value"]
    order = {"honest": "relaxed, base, standard", "liar": "standard, base, relaxed"}
    means = content["results"]["mean"]["model"]
    if judge in order:
        assert content["results"]["ranking"]["model"] == order[judge]
        # Of 84 questions relaxed wins 70 and 80; it ties on 14 with standard, and loses 4 to the base.
        assert means["relaxed"]["mean"] == pytest.approx(abs((judge == "liar") - (70 + 80 + 7) / 168), abs=1e-3)
        for row in content["results"]["model_agreement"].values():
            assert row["kappa"] == (1 if judge == "honest" else -1) * abs(row["kappa"]) and row["pairs"] == 238
    else:
        assert {row["mean"] for row in means.values()} == {0.5 if judge == "undecided" else None}
    # Who calls everything a tie has no position bias.
    assert found["language-model"] == ("does not hold" if judge == "failing" else "new")


def test_answers_that_are_not_there_are_refused(verdicts, tmp_path):
    with pytest.raises(ParameterError, match=r"answers .*base.json: cannot be read"):
        verdicts({"relaxed": 3, "standard": 3}, arms=["relaxed", "base"])
    with pytest.raises(ParameterError, match="no answers of 'mine' are stored"):
        verdicts({"relaxed": 3}, answers="", arms=["mine", "base"])
