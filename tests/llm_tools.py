"""What the tests of the language-model loop share: models that run in a blink, and runs in other processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]


def make_tiny(folder: Path) -> dict[str, str]:
    """A two-layer Llama and a two-layer BERT with random weights and the packaged tokenizers."""
    from transformers import AutoTokenizer, BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

    from fpo.llm.models import packaged_encoder, packaged_policy

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

    from fpo.llm.models import packaged_encoder

    pieces = AutoTokenizer.from_pretrained(packaged_encoder())
    torch.manual_seed(1)
    config = DebertaV2Config(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=len(pieces),
        num_labels=outputs, relative_attention=True, position_buckets=16, pos_att_type=["p2c", "c2p"],
    )  # fmt: skip
    DebertaV2ForSequenceClassification(config).save_pretrained(folder)
    pieces.save_pretrained(folder)
    return str(folder)


def start(command: list[str], **environment: str) -> subprocess.Popen:
    """`python ...` in the repository's root, quiet, its output kept."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths, "TQDM_DISABLE": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen, timeout: float = 300) -> tuple[int, str]:
    out, errors = process.communicate(timeout=timeout)
    return process.returncode, out + errors


def trace(folder: Path) -> list[dict]:
    """A run's trace without what its clock and its machine added."""
    lines = [json.loads(line) for line in (folder / "trace.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key != "machine"} for line in lines]


def size(path: Path) -> int:
    """Bytes of a file that another process may be making or removing; 0 while it is not there."""
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def until_grown(process: subprocess.Popen, path: Path, before: int = 0) -> None:
    """Wait until a process has made a file longer than `before`, or has ended."""
    while process.poll() is None and size(path) <= before:
        time.sleep(0.002)
