"""Several runs of the language-model loop as one batch against one after another, and the loop against TRL's own step.

CPU seconds on one thread, the packaged models, 4 candidates of at most 24 tokens, float32.
"""

import time

import pytest
import torch

from fpo import llm
from fpo.llm.together import train_together

RUNS, PROMPTS = 8, 4  # one window of each run
SHAPE = {"candidates": 4, "max_new_tokens": 24, "steps": PROMPTS, "threads": 1, "oracle": "answer"}
RULES = ("standard", "relaxed", "practical", "exact")


@pytest.fixture(scope="module")
def bench():
    return llm.Workbench(llm.settings(**SHAPE))


def runs(bench):
    return [bench.settings.replace(rule=RULES[i % len(RULES)], seed=i // len(RULES)) for i in range(RUNS)]


def alone(bench, chosen):
    """Each run by itself, writing its own first window."""
    traces = []
    for settings in chosen:
        bench.first_written.clear()
        traces.append(llm.train(settings, bench=bench))
    return traces


def choices(traces):
    return [[(line["winner"], line["text"]) for line in trace] for trace in traces]


def cpu(group):
    return pytest.mark.benchmark(group=group, timer=time.process_time)


@cpu("llm_runs_at_once")
class TestRunsAtOnce:
    """As they are by default, and without the trace's reading of the KL, which a study measures elsewhere."""

    def test_fast(self, benchmark, bench):
        chosen = runs(bench)
        found = choices(alone(bench, chosen))  # the references of all are made here
        group = benchmark.pedantic(train_together, args=[chosen, bench], rounds=2, warmup_rounds=1)
        assert choices(group.traces) == found
        lean = [settings.replace(measure_kl=False) for settings in chosen]
        started = time.process_time()
        train_together(lean, bench)
        benchmark.extra_info |= {"units": RUNS * PROMPTS, "fast_seconds_without_kl": time.process_time() - started}

    def test_slow(self, benchmark, bench):
        chosen = runs(bench)[:2]
        benchmark.extra_info["units"] = len(chosen) * PROMPTS
        benchmark.pedantic(alone, args=[bench, chosen], rounds=2, warmup_rounds=1)


@cpu("llm_against_trl")
class TestAgainstTRL:
    """TRL's RLOO learns from all candidates, the loop from the winner: what a step costs, not what it teaches."""

    def test_fast(self, benchmark, bench):
        benchmark.extra_info["units"] = RUNS * PROMPTS
        benchmark.pedantic(train_together, args=[runs(bench), bench], rounds=2, warmup_rounds=1)

    def test_slow(self, benchmark, bench, tmp_path):
        datasets = pytest.importorskip("datasets")
        trl = pytest.importorskip("trl", reason="pip install -e '.[trl]'")
        from peft import LoraConfig

        from fpo.llm.weights import packaged_policy

        torch.set_num_threads(1)
        s = bench.settings
        messages = [
            [{"role": "system", "content": s.system}, {"role": "user", "content": prompt.text}]
            for prompt in bench.prompts[: 3 * PROMPTS]
        ]

        def reward(prompts, completions, **_):
            texts = [completion[0]["content"] for completion in completions]
            return bench.reward_model.rewards(bench.reward_model.features(texts)).tolist()

        steps = 2
        config = trl.RLOOConfig(
            output_dir=str(tmp_path), use_cpu=True, bf16=False, max_steps=steps, report_to=[], save_strategy="no",
            per_device_train_batch_size=PROMPTS * s.candidates, num_generations=s.candidates, disable_tqdm=True,
            max_completion_length=s.max_new_tokens, temperature=s.temperature, top_p=s.top_p, logging_steps=100,
            gradient_checkpointing=False,
        )  # fmt: skip
        lora = LoraConfig(r=s.lora_rank, lora_alpha=s.lora_alpha, target_modules=s.lora_targets.split())
        trainer = trl.RLOOTrainer(
            model=str(packaged_policy()), reward_funcs=reward, args=config, peft_config=lora,
            train_dataset=datasets.Dataset.from_list([{"prompt": each} for each in messages]),
        )  # fmt: skip
        benchmark.extra_info["units"] = steps * PROMPTS
        benchmark.pedantic(trainer.train, rounds=1)
