"""What users of the loop bring along: chats, columns, oracles that cost, adapters, numbers as they are written."""

import json
import math
import sqlite3
import threading
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForTokenClassification

from fpo.llm import Policy, RewardModel, TrainingError, Workbench, load_prompts, settings, train
from fpo.llm.__main__ import main
from fpo.llm.labels import Labels, OracleError
from fpo.llm.oracles import Pairwise, judged
from fpo.llm.plan import Plan
from fpo.llm.prompts import Prompt
from fpo.llm.settings import Settings, read_yaml
from fpo.parameters import ParameterError


@pytest.mark.parametrize("text, value", [("1e-3", 1e-3), ("-2.5E4", -2.5e4), ("5.e-1", 0.5), ("1.0e-3", 1e-3)])
def test_a_number_with_an_exponent_is_a_number(text, value):
    assert read_yaml(text, "here") == value


@pytest.mark.parametrize("text", ["e3", "1e", "12ab34", "1e-3x"])
def test_what_only_looks_like_one_is_a_text(text):
    assert read_yaml(text, "here") == text


def test_the_list_of_settings_is_whole(capsys):
    assert main(["--list"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert [line.split(" = ")[0] for line in told] == list(Settings.model_fields)
    assert "policy_lr = 2e-05: AdamW, adapter (a finite number from 0 to 1)" in told
    assert all(line.endswith(")") and "None (" not in line for line in told)
    with pytest.raises(SystemExit):
        main([])


def written(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who wrote Faust?"},
    {"role": "assistant", "content": "Goethe."},
    {"role": "user", "content": "When?"},
    {"role": "assistant", "content": "In 1808."},
]


def test_a_chat_is_answered_at_its_last_question(tiny, tmp_path):
    """What comes before it stands in the prompt, a system message in place of the setting's; the answer is left out."""
    source = written(tmp_path / "chats.jsonl", {"messages": CHAT, "topic": "books"}, {"prompt": "Why?"})
    chat, plain = load_prompts(source, 9)
    assert chat.text == "When?" and [role for role, _ in chat.turns] == ["system", "user", "assistant"]
    assert chat.columns == {"topic": "books"} and plain.turns == () and plain.columns == {}
    bench = Workbench(settings(**tiny, prompts=source, head_start="zero"))
    words = bench.policy.tokenizer
    wanted = words.apply_chat_template(CHAT[:4], add_generation_prompt=True, tokenize=False)
    assert words.decode(bench.prompt_ids[0]) == wanted
    assert "Answer in one short sentence." in words.decode(bench.prompt_ids[1])


@pytest.mark.parametrize(
    "messages, message",
    [
        ("Why?", '"messages" is not a list of objects with texts "role" and "content"'),
        ([{"role": "user"}], '"messages" is not a list of objects'),
        ([{"role": "assistant", "content": "So."}], '"messages" holds none whose "role" is "user"'),
        ([{"role": "user", "content": " "}], 'is not an object with a text "prompt"'),
    ],
)
def test_a_chat_that_is_none(tmp_path, messages, message):
    with pytest.raises(ParameterError, match=message):
        load_prompts(written(tmp_path / "chats.jsonl", {"messages": messages}), 9)


def test_prompts_without_answers_are_told_what_to_do(tiny, tmp_path):
    source = written(tmp_path / "own.jsonl", {"prompt": "Why?"})
    with pytest.raises(ParameterError, match="head_start = 'own', of a classifier, or 'zero'"):
        Workbench(settings(**tiny, prompts=source))


def test_columns_reach_the_oracle_and_labels_are_kept(tiny, tmp_path):
    """A second run pays for no text that the first one knew."""
    source = written(tmp_path / "own.jsonl", *({"prompt": f"Why {i}?", "points": i} for i in range(4)))
    paid = []

    def points(prompts, responses):
        paid.extend((prompt.text, text) for prompt, text in zip(prompts, responses, strict=True))
        return [prompt.columns["points"] + len(text) for prompt, text in zip(prompts, responses, strict=True)]

    file = tmp_path / "labels.sqlite"
    chosen = settings(**tiny, prompts=source, head_start="zero", steps=4, labels=str(file))
    first = train(chosen, oracle=points)
    count = len(paid)
    assert (
        len(set(paid)) == count and sqlite3.connect(file).execute("SELECT COUNT(*) FROM labels").fetchone()[0] == count
    )
    again = train(chosen, oracle=points)
    assert [line["utility"] for line in again] == [line["utility"] for line in first] and len(paid) == count
    bare = train(chosen.replace(labels=""), oracle=points)
    assert [line["utility"] for line in bare] == [line["utility"] for line in first] and len(paid) == 2 * count
    with pytest.raises(ParameterError, match="labels keeps what an oracle says"):
        Workbench(chosen)
    with pytest.raises(ParameterError, match="no file that labels can be kept in"):
        train(chosen.replace(labels=str(tmp_path)), oracle=points)


def test_a_judge_of_pairs_teaches_what_it_says(tiny, tmp_path, monkeypatch):
    """p* is its probability, references cost nothing and are worth 0; with `labels` no pair is asked about twice."""
    (tmp_path / "judge_of_pairs.py").write_text(
        "pairs = []\n"
        "def better(prompts, responses, references):\n"
        "    pairs.extend(zip([p.text for p in prompts], responses, references, strict=True))\n"
        "    return [len(z) / (len(z) + len(ref)) for z, ref in zip(responses, references, strict=True)]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import judge_of_pairs

    file = str(tmp_path / "pairs.sqlite")
    chosen = settings(**tiny, oracle="pairwise:judge_of_pairs:better", scale=2.0, steps=4, head_start="zero")
    chosen = chosen.replace(labels=file)
    bench = Workbench(chosen)
    trace = train(chosen, bench=bench)
    asked = list(judge_of_pairs.pairs)
    assert len(set(asked)) == len(asked) == trace[-1]["labels_asked"] == 4 * chosen.candidates
    assert {reference for _, _, reference in asked} == {each["text"] for each in bench.writer.references.values()}
    for line in trace:
        (wanted,) = {len(z) / (len(z) + len(ref)) for _, z, ref in asked if z == line["text"]}
        assert line["p_star"] == pytest.approx(wanted, abs=1e-6) and line["reference_utility"] == 0
        assert line["winner_utility"] == pytest.approx(math.log(wanted / (1 - wanted)) / 2, rel=1e-5)
    assert [line["p_star"] for line in train(chosen)] == [line["p_star"] for line in trace]
    assert judge_of_pairs.pairs == asked


@pytest.mark.parametrize("answers", [[0.5, 1.5], [0.5, float("nan")], [0.5]])
def test_a_judge_of_pairs_that_gives_no_probabilities(answers):
    judge = Pairwise(judged(lambda prompts, responses, references: answers), 1.0)
    prompts = [Prompt("a", "Why?", reference="No."), Prompt("b", "Why?", reference="No.")]
    assert judge(prompts, ["No.", "No."]) == [0.0, 0.0]
    with pytest.raises(OracleError, match="a number from 0 to 1 for each of 2 pairs"):
        judge(prompts, ["So.", "Thus."])


def test_a_study_has_nothing_to_compare_pairs_with(tmp_path):
    plan = Path(__file__).parents[1] / "notebooks" / "parameters" / "llm_study.yaml"
    content = yaml.safe_load(plan.read_text(encoding="utf-8"))
    content["settings"]["honest"]["oracle"] = "pairwise:os:getcwd"
    with pytest.raises(ParameterError, match="plan: settings: honest: oracle = 'pairwise:os:getcwd': held-out prompts"):
        Plan(content, tmp_path)


def test_an_oracle_that_fails_ends_the_run(tiny, tmp_path):
    def silent(prompts, responses):
        raise ConnectionError("nobody there")

    chosen = settings(**tiny, steps=1, window=1, labels=str(tmp_path / "labels.sqlite"), label_tries=1)
    with pytest.raises(TrainingError, match=r"no number for \d of \d texts in 1 tries \(ConnectionError: nobody there"):
        train(chosen, oracle=silent)


def test_labels_are_asked_for_again_until_they_come():
    asked = []

    def shaky(missing):
        asked.append(missing)
        if len(asked) == 1:
            raise ConnectionError("busy")
        return [1.5 if len(asked) > 2 or i < 1 else None for i in missing]

    labels = Labels(wait=0.0)
    assert labels([["a"], ["b"], ["a"]], shaky) == [1.5, 1.5, 1.5]
    assert asked == [[0, 1], [0, 1], [1]] and len(labels) == 2
    assert labels([["b"]], shaky) == [1.5] and len(asked) == 3


def test_a_late_answer_is_kept():
    """A call over its time-out has been paid for as well, even if it answers when nobody waits any more."""
    late, asked, threads = threading.Event(), [], []

    def slow(missing):
        asked.append(missing)
        threads.append(threading.current_thread())
        second = len(asked) == 2
        assert late.wait(600)
        if second:
            raise ConnectionError("too late")
        return [2.5 + i for i in missing]

    labels = Labels(timeout=0.05, tries=1, wait=0.0)
    for text in ("a", "b"):
        with pytest.raises(OracleError, match="TimeoutError: no answer within 0.05 s"):
            labels([[text], [2 * text]], slow)
    assert len(labels) == 0
    late.set()
    for thread in threads:
        thread.join()
    assert labels([["aa"], ["a"]], slow) == [3.5, 2.5] and asked == [[0, 1]] * 2
    labels = Labels(tries=1)
    with pytest.raises(OracleError, match="2 texts in 1 tries"):
        labels([["a"], ["b"]], lambda missing: iter([None, None]))


@pytest.mark.parametrize(
    "ask, timeout, message",
    [
        (lambda missing: [float("nan")] * len(missing), 600.0, r"label nan\)"),
        (lambda missing: [], 600.0, "gave 0 labels for 1 texts"),
        (lambda missing: __import__("threading").Event().wait(), 0.05, "TimeoutError: no answer within 0.05 s"),
    ],
)
def test_labels_that_do_not_come(ask, timeout, message):
    with pytest.raises(OracleError, match=message):
        Labels(timeout=timeout, tries=2, wait=0.0)([["a"]], ask)


@pytest.mark.parametrize("faulty", [{"timeout": -1.0}, {"wait": float("inf")}, {"tries": 0}])
def test_bad_limits_are_refused(faulty):
    with pytest.raises(ValueError, match=f"{next(iter(faulty))} = "):
        Labels(**faulty)


def test_scale_is_that_of_utilities(tiny):
    """Twice the scale teaches what twice the utilities teach; what the trace reports stays the oracle's."""

    def loud(factor):
        return lambda prompts, responses: [factor * 0.1 * len(text) for text in responses]

    chosen = settings(**tiny, steps=2, window=2, rule="relaxed", head_lr=0.01)
    double = train(chosen.replace(scale=2.0), oracle=loud(1.0))
    wanted = train(chosen, oracle=loud(2.0))
    for a, b in zip(double, wanted, strict=True):
        for name in ("p_star", "penalty_mean", "head_loss"):
            assert a[name] == pytest.approx(b[name], abs=1e-6)
        assert a["winner"] == b["winner"] and 2 * a["utility"] == pytest.approx(b["utility"], abs=1e-5)


def test_a_decoder_with_a_head_for_each_token(tiny, tmp_path):
    """Its answer for the last token is the text's reward."""
    words = AutoTokenizer.from_pretrained(tiny["policy"])
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, vocab_size=len(words),
        num_labels=1, pad_token_id=words.pad_token_id, initializer_range=0.3,
    )  # fmt: skip
    model = LlamaForTokenClassification(config).eval()
    model.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    made = RewardModel(settings(**{**tiny, "reward_model": str(tmp_path)}, head_start="own"))
    texts = ["a text", "a longer text of several words", "yes"]
    for text, reward in zip(texts, made.rewards(made.features(texts)), strict=True):
        with torch.no_grad():
            alone = model(**words(text, return_tensors="pt")).logits[0, -1, 0]
        assert float(reward) == pytest.approx(float(alone), abs=1e-5)


def test_a_policy_is_written_and_read_as_a_peft_folder(tiny, tmp_path):
    """PEFT loads it on its base, and the loop takes it for its policy's base."""
    made = Policy(settings(**tiny))
    with torch.no_grad():
        for value in made.adapter.values():
            value.add_(0.01)
    made.save_pretrained(tmp_path / "adapter")
    ids = torch.tensor([[5, 6, 7, 8]])
    base = AutoModelForCausalLM.from_pretrained(tiny["policy"])
    with torch.no_grad():
        wanted = made.model(input_ids=ids).logits
        bare = base(input_ids=ids).logits
        by_peft = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()(input_ids=ids).logits
        again = Policy(settings(**{**tiny, "policy": str(tmp_path / "adapter")}))
        with again.base():
            ours = again.model(input_ids=ids).logits
    assert torch.allclose(by_peft, wanted, atol=1e-4) and torch.allclose(ours, wanted, atol=1e-3)
    assert not torch.allclose(bare, wanted, atol=1e-2)
