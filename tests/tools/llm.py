"""What the tests of the language-model loop share: models that run in a blink, and runs in other processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]


def make_tiny(folder: Path) -> dict[str, str]:
    """A two-layer Llama and a two-layer BERT with random weights and the packaged tokenizers."""
    from transformers import AutoTokenizer, BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

    from fpo.llm.weights import packaged_encoder, packaged_policy

    policy, encoder = folder / "policy", folder / "encoder"
    torch.manual_seed(0)
    words = AutoTokenizer.from_pretrained(packaged_policy())
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"bos_token_id": 1, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    # Wide initial weights: what is drawn must depend on what was read, and not on the last digit.
    config = LlamaConfig(**shape, **ids, num_key_value_heads=2, vocab_size=len(words), initializer_range=0.8)
    LlamaForCausalLM(config).save_pretrained(policy)
    words.save_pretrained(policy)
    pieces = AutoTokenizer.from_pretrained(packaged_encoder())
    BertModel(BertConfig(**shape, vocab_size=len(pieces), initializer_range=0.1)).save_pretrained(encoder)
    pieces.save_pretrained(encoder)
    return {"policy": str(policy), "reward_model": str(encoder), "max_new_tokens": 12, "candidates": 3, "threads": 1}


def make_classifier(folder: Path, outputs: int = 1) -> str:
    """A tiny sequence classifier with that many outputs."""
    from transformers import AutoTokenizer, DebertaV2Config, DebertaV2ForSequenceClassification

    from fpo.llm.weights import packaged_encoder

    pieces = AutoTokenizer.from_pretrained(packaged_encoder())
    torch.manual_seed(1)
    config = DebertaV2Config(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=len(pieces),
        num_labels=outputs, relative_attention=True, position_buckets=16, pos_att_type=["p2c", "c2p"],
    )  # fmt: skip
    DebertaV2ForSequenceClassification(config).save_pretrained(folder)
    pieces.save_pretrained(folder)
    return str(folder)


def start(command: list[str], stderr: Any = subprocess.PIPE, **environment: str) -> subprocess.Popen:
    """`python ...` in the repository's root, quiet, its output kept."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths, "TQDM_DISABLE": "1", **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )


# Forks a process for each run that it is told to play, so that torch is loaded once. A run can stop in a certain call:
# it says so and goes on when a byte comes in.
NURSERY = """
import importlib, json, os, sys
from fpo.llm import train  # before the forks: main loads it when it plays
from fpo.llm.__main__ import main

def stop(called, call):
    module, _, name = called.partition(":")
    owner, (*outer, name) = importlib.import_module(module), name.split(".")
    for each in outer:
        owner = getattr(owner, each)
    original, calls = getattr(owner, name), 0
    def stopping(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == call:
            if name == "fsync":  # a write in its middle: the last bytes are not there yet
                os.ftruncate(args[0], os.fstat(args[0]).st_size - 7)
            print("here", os.getpid(), flush=True)
            os.read(0, 1)
        return original(*args, **kwargs)
    setattr(owner, name, stopping)

for line in sys.stdin:
    called, call, arguments = json.loads(line)
    child = os.fork()
    if not child:
        if called:
            stop(called, call)
        sys.exit(main(arguments))
    print("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Nursery:
    """Runs of `python -m fpo.llm` in processes of their own, one at a time, that stop where they are told to."""

    def __init__(self, log: Path):
        self._log = log
        self._process = start(["-c", NURSERY], stderr=open(log, "w", encoding="utf-8"))

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=300)
        self._process.stdout.close()

    def _told(self, word: str) -> int:
        for line in self._process.stdout:
            first, *rest = line.split()
            if first == word:
                return int(rest[0])
            if first == "ended":
                break
        raise AssertionError(f"no {word!r}: {self._log.read_text(encoding='utf-8')[-2000:]}")

    def _play(self, order: list) -> None:
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def play(self, *arguments: str) -> None:
        """A run from its start, or from where one was killed, to its end."""
        self._play(["", 0, arguments])
        assert self._told("ended") == 0, self._log.read_text(encoding="utf-8")[-2000:]

    def stopped(self, called: str, call: int, *arguments: str) -> int:
        """A run that has come to the call with this number of `called`, "module:name", and waits there: its process."""
        self._play([called, call, arguments])
        return self._told("here")

    def kill(self, process: int) -> None:
        os.kill(process, signal.SIGKILL)
        assert self._told("ended") == -signal.SIGKILL

    def release(self) -> None:
        """Let the run that waits go on to its end."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        assert self._told("ended") == 0, self._log.read_text(encoding="utf-8")[-2000:]


def finish(process: subprocess.Popen, timeout: float = 300) -> tuple[int, str]:
    out, errors = process.communicate(timeout=timeout)
    return process.returncode, out + errors


def play(bench: Any, folder: Path | None = None, **changes: Any) -> list[dict]:
    """A run at a workbench with its settings, some of them changed."""
    from fpo.llm import train

    return train(bench.settings.replace(**changes), folder, bench=bench)


def short_run(tiny: dict[str, str], folder: Path) -> tuple[Any, Path]:
    """A workbench, and the folder of a run of five windows that was played there."""
    from fpo.llm import Workbench, settings

    values = {**tiny, "steps": 10, "window": 2, "rule": "exact", "lora_dropout": 0.1, "policy_lr": 1e-3}
    values["max_new_tokens"] = 6
    bench = Workbench(settings(**values, save_every=2))
    play(bench, folder)
    return bench, folder


def numbers(trace: list[dict]) -> list[dict]:
    """A trace without what its clock and its machine added."""
    return [{key: value for key, value in line.items() if key != "machine"} for line in trace]


def trace(folder: Path) -> list[dict]:
    """The `numbers` of a run's folder."""
    return numbers([json.loads(line) for line in (folder / "trace.jsonl").read_bytes().decode().split("\n")[:-1]])


def same(a: Any, b: Any) -> bool:
    """Bit by bit, through every container."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def learned(folder: Path) -> dict[str, Any]:
    """What a checkpoint holds of the run itself; the bytes of the trace depend on the clock."""
    from fpo import files

    state = files.load(folder / "checkpoint.pt")
    return {key: value for key, value in state.items() if key not in ("trace_bytes", "trace_sha256")}
