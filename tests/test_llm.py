"""The loop: against its slow twin, what it records, its controls, and several processes."""

import io
import json
import math
import sys
from types import SimpleNamespace

import pytest
import slow.llm
import torch
import yaml
from tools import llm as llm_tools
from tools.parameter_classes import validated

from fpo.llm import FolderError, ModelError, Pipeline, rules, settings, train
from fpo.llm.__main__ import main
from fpo.llm.loop import Team, claimed, kept_settings
from fpo.llm.oracles import Agreement, distinct_2, head_pairs, named_oracle, repetition
from fpo.llm.prompts import Prompt, load_prompts, order
from fpo.parameters import ParameterError


class Recorded(Pipeline):
    """A pipeline that keeps its windows."""

    def window(self, *args, **kwargs):
        made = super().window(*args, **kwargs)
        self.windows = [*getattr(self, "windows", []), made]
        return made


def compare_with_twin(chosen):
    """The fast loop and the slow twin on the same settings; returns the largest differences seen."""
    torch.set_num_threads(chosen.threads or torch.get_num_threads())
    twin = slow.llm.SlowLoop(chosen)
    rows = [twin.step(position) for position in range(chosen.steps)]
    fast = Recorded(chosen)
    trace = fast.train()
    far = {"utility": 0.0, "score": 0.0, "loss": 0.0}
    for window in fast.windows:
        scores = window.rewards + chosen.weight() * window.penalties
        for i, position in enumerate(window.positions):
            row = rows[position]
            assert window.tokens[i] == row["tokens"], f"step {position}"
            assert int(window.winners[i]) == row["winner"]
            gaps = (window.utilities[i] - torch.tensor(row["utilities"])).abs().max()
            known = abs(float(window.reference.utility[i]) - row["reference_utility"])
            far["utility"] = max(far["utility"], float(gaps), known)
            far["score"] = max(far["score"], float((scores[i] - torch.tensor(row["scores"])).abs().max()))
            for name in ("head_loss", "policy_loss"):
                far["loss"] = max(far["loss"], abs(trace[position][name] - row[name]))
    learned = [value.detach() for value in fast.policy.adapter.values()]
    far["adapter"] = max(float((a - b.detach()).abs().max()) for a, b in zip(learned, twin.trained, strict=True))
    moved = max(float((a - b).abs().max()) for a, b in zip(learned, fast._start, strict=False))
    assert moved > 1e-5, "the policy did not learn: nothing was compared"
    far["head"] = float((twin.head.weight - fast.reward_model.head.weight).detach().abs().max())
    return far


def assert_agree(far):
    assert far["utility"] <= 1e-4
    assert max(far["score"], far["loss"], far["adapter"], far["head"]) <= 1e-5, far


@pytest.mark.parametrize("rule", ["standard", "relaxed", "practical"])
def test_agrees_with_the_slow_twin(tiny, rule):
    assert_agree(compare_with_twin(settings(**tiny, steps=8, rule=rule)))


def test_agrees_with_the_slow_twin_on_the_default_profile():
    """The packaged models, eight prompts; fewer and shorter candidates than the default's, for time's sake."""
    shorter = {"candidates": 2, "max_new_tokens": 8, "threads": 1}
    assert_agree(compare_with_twin(settings(rule="relaxed", steps=8, **shorter)))


# What a run records


@pytest.fixture(scope="module")
def pipeline(tiny):
    return Pipeline(settings(**tiny, steps=6))


FIELDS = {
    "step", "prompt", "rule", "reward", "utility", "winner", "winner_reward", "winner_utility", "reference_reward",
    "reference_utility", "p_phi", "p_star", "penalty_mean", "penalty_spread", "kl", "length", "distinct_2",
    "repetition", "empty", "head_loss", "policy_loss", "text", "labels", "machine",
}  # fmt: skip


@pytest.mark.parametrize("rule", rules.RULES)
def test_every_rule_plays(pipeline, rule, tmp_path):
    trace = pipeline.train(tmp_path / "run", rule=rule)
    assert trace == [json.loads(line) for line in (tmp_path / "run" / "trace.jsonl").read_text().splitlines()]
    assert [line["step"] for line in trace] == list(range(6))
    for line in trace:
        assert set(line) == FIELDS
        assert line["p_phi"] == pytest.approx(
            1 / (1 + math.exp(line["reference_reward"] - line["winner_reward"])), abs=1e-6
        )
        assert set(line["machine"]["seconds"]) == {"decode", "reward", "oracle", "select", "head", "policy"}
        assert 0 < line["machine"]["peak_gib"] < 100
    assert [line["labels"] for line in trace] == [rules.labels_used(rule, 3) * (i + 1) for i in range(6)]
    assert all(abs(line["kl"]) < 1e-3 for line in trace[:4]), "the adapter starts at zero: the policy is the base"


def test_all_rules_start_alike(pipeline):
    """Paired arms: the first window has the same candidates, whatever the rule."""
    first = {}
    for rule in ("standard", "practical", "random"):
        trace = pipeline.train(rule=rule)
        first[rule] = [(line["prompt"], line["reward"], line["utility"], line["length"]) for line in trace[:4]]
    assert first["standard"] == first["practical"] == first["random"]


def test_training_again_starts_again(pipeline):
    def numbers(trace):
        return [{key: value for key, value in line.items() if key != "machine"} for line in trace]

    assert numbers(pipeline.train(rule="relaxed")) == numbers(pipeline.train(rule="relaxed"))


def test_the_head_learns_the_preference(tiny):
    """With a large rate the RM comes to agree with the oracle on the comparisons it saw."""
    trace = train(settings(**tiny, steps=24, head_lr=0.05, policy_lr=0.0, prompt_count=4, head_ridge=1e-3))
    assert sum(line["head_loss"] for line in trace[-4:]) < sum(line["head_loss"] for line in trace[:4])


def test_measuring_the_winner_alone(pipeline):
    """The same winners and updates, fewer oracle values; a rule that reads all labels is not spared them."""
    full, spared = pipeline.train(rule="practical"), pipeline.train(rule="practical", measure="winner")
    assert [line["winner"] for line in full] == [line["winner"] for line in spared]
    assert [line["policy_loss"] for line in full] == [line["policy_loss"] for line in spared]
    assert all(line["utility"] is None for line in spared)
    for a, b in zip(full, spared, strict=True):
        assert a["winner_utility"] == pytest.approx(b["winner_utility"], abs=1e-5)
    relaxed = pipeline.train(rule="relaxed", measure="winner")
    assert [line["winner"] for line in relaxed] == [line["winner"] for line in pipeline.train(rule="relaxed")]


def test_a_window_that_is_cut_short(tiny):
    assert len(train(settings(**tiny, steps=5, window=4))) == 5


@pytest.mark.parametrize(
    "changes",
    [
        {"reward_reads": "prompt and response"},
        {"oracle": "answer"},
        {"oracle": "answer", "head_start": "blind spot", "learn_from": "response"},
        {"head_start": "zero", "rule": "exact"},
        {"lora_dropout": 0.1, "reward_dropout": "update and standard scores"},
        {"gradient_checkpointing": True},
        {"dtype": "bfloat16"},
        {"weights": "random"},
        {"system": ""},
        {"buffer_size": 0, "rule": "leverage"},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_settings_play(tiny, changes):
    trace = train(settings(**{**tiny, "steps": 4, "window": 2, **changes}))
    assert all(math.isfinite(line["policy_loss"]) for line in trace)


def test_reading_the_prompt_changes_the_reward(tiny):
    first = [
        train(settings(**tiny, steps=1, reward_reads=reads))[0]["reward"]
        for reads in ("response", "prompt and response")
    ]
    assert first[0] != first[1]


def test_gradient_checkpointing_changes_nothing(tiny):
    both = [train(settings(**tiny, steps=8, gradient_checkpointing=on)) for on in (False, True)]
    for a, b in zip(*both, strict=True):
        assert a["policy_loss"] == pytest.approx(b["policy_loss"], abs=1e-5)


def test_a_classifier_keeps_its_head(tiny, tmp_path):
    """The features times the kept head are the classifier's own output, and the head is what learns."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = llm_tools.make_classifier(tmp_path)
    chosen = settings(**{**tiny, "reward_model": folder}, head_start="own", steps=4, rule="relaxed")
    made = Pipeline(chosen)
    texts = ["a text", "another and longer text", ""]
    found = made.reward_model.rewards(made.reward_model.features(texts))
    model, words = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for text, reward in zip(texts, found, strict=True):
        with torch.no_grad():
            expected = model.eval()(**words(text, return_tensors="pt")).logits[0, 0]
        assert float(reward) == pytest.approx(float(expected), abs=1e-5)
    before = made.reward_model.head.weight.clone()
    made.train()
    assert not torch.equal(before, made.reward_model.head.weight)


# Oracles and prompts


def shout(prompts, responses):
    """An oracle of the reader's own: as many points as letters."""
    return [float(len(response)) for response in responses]


def test_an_oracle_of_ones_own(tiny):
    by_name = train(settings(**tiny, steps=4, oracle="test_llm:shout"))
    by_hand = train(settings(**tiny, steps=4), oracle=shout)
    assert [line["utility"] for line in by_name] == [line["utility"] for line in by_hand]
    assert all(line["winner_utility"] == len(line["text"]) for line in by_hand)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def f(:", "SyntaxError: invalid syntax"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise BaseException('two\\nlines')", "BaseException: two lines"),
        ("import not_installed_anywhere", "ModuleNotFoundError: No module named 'not_installed_anywhere'"),
        ("", "AttributeError: module 'odd_{}' has no attribute 'f'"),
        ("def __getattr__(name): raise OSError(name)", "OSError: f"),
        ("f = 3", None),
    ],
    ids=["zero", "syntax", "exit", "base", "missing", "empty", "lazy", "number"],
)
def test_an_oracle_that_cannot_be_imported(tmp_path, monkeypatch, request, content, reason):
    (tmp_path / f"odd_{request.node.callspec.id}.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    name = f"odd_{request.node.callspec.id}:f"
    with pytest.raises(ParameterError) as caught:
        named_oracle(name)
    told = reason and f"must be likelihood, answer, or MODULE:FUNCTION ({reason.format(request.node.callspec.id)}"
    assert str(caught.value).startswith(f"oracle = '{name}': {told or 'not a function'}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["", ":", ":f", "..x:f", "os.path", "a\0b:c", "\ud800:f", "x" * 5000 + ":f"])
def test_an_oracle_that_has_no_such_name(name):
    with pytest.raises(ParameterError, match="must be likelihood, answer, or MODULE:FUNCTION") as caught:
        named_oracle(name)
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)


def test_another_oracle_is_another_run(tiny, tmp_path):
    chosen = settings(**tiny, steps=2, window=2)
    train(chosen, tmp_path / "run", oracle=shout)
    with pytest.raises(FolderError, match="oracle = 'test_llm:shout' there, 'likelihood' now"):
        train(chosen, tmp_path / "run")


def test_a_prompt_that_comes_again_costs_no_reference(tiny):
    trace = train(settings(**tiny, steps=6, prompt_count=4, window=2))
    assert [line["labels"] for line in trace] == [2, 4, 6, 8, 9, 10]


def test_agreement_ranks_answers():
    """A correct answer above a wrong one, and above itself repeated: on nearly all packaged prompts."""
    from fpo.llm import RewardModel

    judge = Agreement(RewardModel(settings()))
    prompts = load_prompts("packaged", 500)
    right = judge(prompts, [prompt.correct[1] for prompt in prompts])
    wrong = judge(prompts, [prompt.incorrect[0] for prompt in prompts])
    twice = judge(prompts, [f"{prompt.correct[1]} {prompt.correct[1]}" for prompt in prompts])
    nothing = judge(prompts, ["" for _ in prompts])
    assert sum(a > b for a, b in zip(right, wrong, strict=True)) >= 0.97 * len(prompts)
    assert all(a > b for a, b in zip(right, twice, strict=True))
    assert all(-4 <= value < min(a, 8) for value, a in zip(nothing, right, strict=True))


def test_text_measures():
    assert repetition("") == 0 and repetition("one two three") == 0
    assert distinct_2(["one"]) == 0 and distinct_2(["a b a b"]) == pytest.approx(2 / 3)


def test_head_pairs_have_the_planted_fault():
    prompt = Prompt("1", "Why?", ("Because it is so.",), ("Because not.", "No reason."))
    better, worse = head_pairs([prompt], "answers", seed=0)
    assert better == ["Because it is so."] * 2 and worse == ["Because not.", "No reason."]
    better, worse = head_pairs([prompt], "blind spot", seed=0)
    assert better[1].endswith(worse[1]) and len(better[1]) > len(worse[1])
    assert sorted(worse[0].split()) == sorted(better[0].split())


def test_packaged_prompts():
    train_set, held_out = load_prompts("packaged", 10**6), load_prompts("packaged:heldout", 10**6)
    assert len(train_set) >= 160 and len(held_out) >= 80
    texts = [prompt.text.lower() for prompt in (*train_set, *held_out)]
    assert len(set(texts)) == len(texts)
    for prompt in (*train_set, *held_out):
        assert len(prompt.correct) >= 2 and len(prompt.incorrect) >= 2 and prompt.keywords, prompt.id
        assert not set(prompt.correct) & set(prompt.incorrect)
        for answer in (*prompt.correct, *prompt.incorrect):
            assert 3 <= len(answer.split()) <= 22, (prompt.id, answer)


def test_only_a_newline_ends_a_line_of_prompts(tmp_path):
    """JSON may hold U+2028, U+2029 and U+0085 as they are; Windows writes a byte order mark and CRLF."""
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"one{mark}two?", "correct": [f"a{mark}b"]} for mark in ("\u2028", "\u2029", "\x85", " ")]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    for start, end in (("", "\n"), ("\ufeff", "\n"), ("", "\r\n"), ("\ufeff", "\r\n"), ("\r\n", "\r\n\r\n")):
        file.write_bytes((start + end.join(lines) + end).encode())
        found = load_prompts(str(file), 10)
        assert [(prompt.text, list(prompt.correct)) for prompt in found] == [
            (row["prompt"], row["correct"]) for row in rows
        ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (rb'{"prompt": "\ud800"}', "line 2 holds half a character, a lone surrogate"),
        (rb'{"prompt": "Why?", "correct": ["So.", "\udfff"]}', "line 2 holds half a character"),
        (rb'{"prompt": "Why?", "id": "\ud800"}', "line 2 holds half a character"),
        (b'{"prompt": "Why?", "id": NaN}', "line 2 cannot be read (NaN is no number of JSON)"),
        (b'{"prompt": "Why?", "odd": -Infinity}', "line 2 cannot be read (-Infinity is no number of JSON)"),
        (b'{"prompt": "Why?", "odd": ' + b"9" * 5000 + b"}", "line 2 cannot be read (Exceeds the limit"),
        (b'{"prompt": "Why?", "odd": ' + b"[" * 10**5 + b"]" * 10**5 + b"}", "line 2 cannot be read (maximum rec"),
        (b'{"prompt": "Why?", "prompt": "How?"}', "line 2 cannot be read (a name is given twice)"),
        (b'{"prompt": "Why?", "id": ["a"]}', 'line 2: "id" is neither a text nor a whole number'),
        (b'{"prompt": "Why?", "id": null}', 'line 2: "id" is neither a text nor a whole number'),
        (b'{"prompt": "\xed\xa0\x80"}', "the file is not UTF-8 text"),
        (b'{"prompt": "Wh\ry?"}', "line 2 is not JSON"),
    ],
    ids=range(12),
)
def test_a_line_that_is_no_prompt(tmp_path, line, reason):
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(b'{"prompt": "Why?"}\n' + line + b"\n")
    with pytest.raises(ParameterError) as caught:
        load_prompts(str(file), 10)
    assert str(caught.value).startswith(f"prompts = {str(file)!r}: {reason}")
    assert "\n" not in str(caught.value)


def test_a_source_of_prompts_that_is_none(tmp_path, monkeypatch):
    """Whatever is here is not asked for on the hub; and what the hub says comes as one message."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "owner" / "name").mkdir(parents=True)
    (tmp_path / "prompts.json").write_text('{"prompt": "Why?"}')
    asked = []

    def load_dataset(name, split):
        asked.append(name)
        raise LookupError("no\nsuch data set")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    cases = {
        "owner/name": "is a folder here",
        "owner/name:train": "is a folder here",
        str(tmp_path): "is a folder here",
        ".": "is a folder here",
        "prompts.json": "is a file here",
        "folder.jsonl": "there is no such file",
        "~nobody-of-this-name/x.jsonl": "there is no such file",
        "./nowhere": "must be packaged, FILE.jsonl, or owner/name:split of the hub",
        "a b": "must be packaged",
        "a\nb": "must be packaged",
        "x" * 10**5 + "/" * 9: "must be packaged",
        "owner/other": "the hub does not give it (LookupError: no such data set)",
    }
    for source, reason in cases.items():
        with pytest.raises(ParameterError) as caught:
            load_prompts(source, 10)
        assert f": {reason}" in str(caught.value), source
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 800
    assert asked == ["owner/other"]


def test_every_prompt_once_before_any_again():
    taken = order(5, 13, seed=3)
    assert sorted(taken[:5]) == sorted(taken[5:10]) == list(range(5)) and len(taken) == 13
    assert taken != order(5, 13, seed=4)


# Several processes


def test_two_processes_agree_with_one(tiny, tmp_path):
    values = {**tiny, "steps": 8, "rule": "exact"}
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump(values))
    # Rank 0 of the launcher needs a free port; 0 lets it choose one.
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m", "fpo.llm"]
    code, told = llm_tools.finish(llm_tools.start([*launch, str(tmp_path / "two"), "--file", str(file)]))
    assert code == 0, told
    one = train(settings(**values), tmp_path / "one")
    two = llm_tools.trace(tmp_path / "two")
    assert [line["step"] for line in two] == list(range(8))
    for a, b in zip(one, two, strict=True):
        assert (a["prompt"], a["winner"], a["text"], a["labels"]) == (b["prompt"], b["winner"], b["text"], b["labels"])
        for name in ("reward", "utility", "penalty_mean", "head_loss", "policy_loss"):
            assert a[name] == pytest.approx(b[name], abs=1e-5), name
    states = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("one", "two")]
    for key, value in states[0]["adapter"].items():
        assert torch.allclose(value, states[1]["adapter"][key], atol=1e-5), key
    assert torch.allclose(states[0]["head"]["weight"], states[1]["head"]["weight"], atol=1e-5)


def test_a_folder_is_claimed_once(tiny, tmp_path):
    with claimed(tmp_path / "run", kept_settings(settings(**tiny)), Team()):
        with pytest.raises(FolderError, match="in use"):
            train(settings(**tiny), tmp_path / "run")


# The command line


@pytest.fixture
def command(monkeypatch, capsys):
    """The command line with a run that only tells what it was asked for; returns status, settings and stderr."""

    def run(*words):
        asked = []

        def play(chosen, folder):
            asked.append(chosen)
            return [{"labels": 2}]

        monkeypatch.setattr("fpo.llm.__main__.train", play)
        status = main(list(words))
        return status, (asked or [None])[0], capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("content", "words", "message"),
    [
        (None, ["--set", "steps"], "--set 'steps': must be NAME=VALUE"),
        (None, ["--set", "=3"], "--set '=3': must be NAME=VALUE"),
        (None, ["--set", "steps=[1"], "--set 'steps=[1': not YAML (ParserError: while parsing a flow sequence"),
        (None, ["--set", "steps=!!bool x"], "--set 'steps=!!bool x': not YAML (KeyError: 'x')"),
        (None, ["--set", "steps=2020-99-99"], "--set 'steps=2020-99-99': not YAML (ValueError: month must be"),
        (None, ["--set", "steps=" + "[" * 500], "not YAML (RecursionError"),
        (None, ["--set", "steps=" + "9" * 5000], "not YAML (ValueError: Exceeds the limit"),
        (None, ["--set", "steps={a: 1, a: 2}"], "not YAML (ConstructorError: 'a' is given twice)"),
        (None, ["--set", "steps=1", "--set", "steps=2"], "--set 'steps=2': 'steps' is given twice"),
        (None, ["--profile", "llama-3.2-1b", "--set", "profile=smollm2-135m"], "'profile' is given twice"),
        (None, ["--profile", "gpt"], "profile = 'gpt': must be one of"),
        (None, ["--set", "profile=[x]"], "profile = ['x']: must be one of"),
        (None, ["--set", "self=3"], "self = 3: no such parameter"),
        (None, ["--set", "a\nb=3"], r"'a\nb' = 3: no such parameter"),
        (None, ["--set", "system=2020-01-01"], "system = datetime.date(2020, 1, 1): must be a text of at most 10,000"),
        (None, ["--file", "{}"], "cannot be read as UTF-8 text ([Errno 2] No such file"),
        (b"\xff", ["--file", "{}"], "cannot be read as UTF-8 text ('utf-8' codec can't decode"),
        (b"", ["--file", "{}"], "holds None, must be a mapping, name: value"),
        (b"- 1\n- 2", ["--file", "{}"], "holds [1, 2], must be a mapping, name: value"),
        (b"1: 2", ["--file", "{}"], "holds {1: 2}, must be a mapping, name: value"),
        (b"steps: [1", ["--file", "{}"], "not YAML (ParserError: while parsing a flow sequence in"),
        (b"steps: 1\nrule: kl\nsteps: 2", ["--file", "{}"], "not YAML (ConstructorError: 'steps' is given twice)"),
        (b"steps: 1\0", ["--file", "{}"], "not YAML (ReaderError: unacceptable character"),
    ],
    ids=range(23),
)
def test_the_command_refuses_in_one_message(command, tmp_path, content, words, message):
    file = tmp_path / "settings.yaml"
    if content is not None:
        file.write_bytes(content)
    status, asked, told = command(str(tmp_path / "run"), *(str(file) if word == "{}" else word for word in words))
    assert (status, asked) == (1, None)
    lines = told.splitlines()
    assert message in lines[-1] and len(lines) <= 2 and max(map(len, lines)) < 1500
    assert not (tmp_path / "run").exists()


def test_the_command_line_goes_before_the_file(command, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_bytes(b"\xef\xbb\xbfprofile: llama-3.2-1b\r\nsteps: 8\r\nrule: kl\r\n")
    _, asked, _ = command("run", "--file", str(file), "--set", "steps=4")
    assert (asked.profile, asked.steps, asked.rule) == ("llama-3.2-1b", 4, "kl")
    _, asked, _ = command("run", "--file", str(file), "--profile", "smollm2-135m")
    assert (asked.profile, asked.steps, asked.dtype) == ("smollm2-135m", 8, "float32")


@pytest.mark.parametrize(
    ("raised", "status", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted: the same command goes on from the last checkpoint\n"),
        (ValueError("run/settings.json is damaged"), 1, "run/settings.json is damaged\n"),
        (OSError(28, "No space left on device"), 1, "[Errno 28] No space left on device\n"),
        (FolderError("a\nb is in use"), 1, "a b is in use\n"),
        (ModelError("x" * 10**5), 1, "x" * 1997 + "...\n"),
        (ValueError(), 1, "ValueError\n"),
    ],
    ids=["interrupt", "value", "disk", "lines", "long", "nothing"],
)
def test_the_command_ends_in_one_line(monkeypatch, capsys, raised, status, message):
    def play(chosen, folder):
        raise raised

    monkeypatch.setattr("fpo.llm.__main__.train", play)
    assert main(["run"]) == status
    assert capsys.readouterr().err == message


def test_a_folder_that_the_terminal_cannot_show(monkeypatch):
    monkeypatch.setattr("fpo.llm.__main__.train", lambda chosen, folder: [{"labels": 2}])
    shown = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", shown)
    assert main(["caf\xe9\udcff"]) == 0
    shown.flush()
    assert shown.buffer.getvalue().rstrip() == rb"1 steps, 2 oracle labels: caf\xe9\udcff/trace.jsonl"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["oracle:answer"], "overrides: 'oracle:answer': must be \"name: value\""),
        (["a: 1\nb: 2"], r"overrides: 'a: 1\nb: 2': must be"),
        (["1: 2"], "overrides: '1: 2': must be"),
        ([""], "overrides: '': must be"),
        (["[1"], "overrides: '[1': not YAML (ParserError: "),
        (["a: !!timestamp x"], "overrides: 'a: !!timestamp x': not YAML (AttributeError: "),
        (["steps: 3"], "overrides: 'steps: 3': the notebook sets steps itself"),
        (["play: []"], "overrides: 'play: []': the notebook sets play itself"),
        (["rule: exact"], "overrides: 'rule: exact': the notebook sets rule itself"),
        (["oracle: answer", "oracle: likelihood"], "overrides: 'oracle: likelihood': 'oracle' is given twice"),
        (["orakel: answer"], "orakel = 'answer': no such parameter"),
        (["lora_rank: 0"], "lora_rank = 0: must be a whole number from 1"),
        ("oracle: answer", "overrides = 'oracle: answer': must be a list of texts, each"),
    ],
    ids=range(13),
)
def test_the_chapters_overrides_in_one_message(entries, message):
    with pytest.raises(ParameterError) as caught:
        validated("llm_pipeline", overrides=entries)
    assert message in str(caught.value) and len(str(caught.value).splitlines()) <= 2


def test_the_chapters_overrides_count():
    made = validated("llm_pipeline", overrides=["oracle: answer", "lora_rank: 4"], steps=6)["settings"]
    assert (made.oracle, made.lora_rank, made.steps) == ("answer", 4, 6)
