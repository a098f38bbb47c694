"""The chapter on truth and its judges with other answers, other judges, and a language model over HTTP."""

from __future__ import annotations

import json

import pytest
import torch
from tools.judge_server import JudgeServer
from tools.verdicts import play

import fpo.llm
from fpo import results
from fpo.evaluation.questions import load_questions
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

    def of(right, vague=(), **values):
        """Each arm gives the right answer to so many of the questions, else a wrong one; some say nothing to any."""
        for arm, count in right.items():
            texts = {q.id: q.correct[0] if i < count else q.incorrect[0] for i, q in enumerate(BANK)}
            texts = dict.fromkeys(texts, "Who knows.") if arm in vague else texts
            content = {"arm": arm, "answers": texts, "cut": []}
            (tmp_path / f"{arm}.json").write_text(json.dumps(content))
        given = {"answers": str(tmp_path), "arms": list(right), "calls": str(tmp_path / "calls")}
        return play("truthfulqa", tmp_path / "results.json", figures=False, **given | values)

    return of


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


def test_answers_that_are_not_there_are_refused(verdicts, tmp_path):
    with pytest.raises(ParameterError, match=r"answers .*base.json: cannot be read"):
        verdicts({"relaxed": 3, "standard": 3}, arms=["relaxed", "base"])
    with pytest.raises(ParameterError, match="no answers of 'mine' are stored"):
        verdicts({"relaxed": 3}, answers="", arms=["mine", "base"])
