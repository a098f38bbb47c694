"""The explorers of the language model's chapters: one step of the loop, and the study's runs with what they wrote."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fpo_book import read_results, read_run
from fpo_explorer_parts import (
    STATUS,
    chart,
    checkbox,
    choice,
    dumps,
    looks,
    numbers_table,
    reset,
    slider,
    swatch,
    switches,
)
from markupsafe import Markup
from sphinx.environment import BuildEnvironment

# ---------------------------------------------------------------------------------------------------------------------
# One step of the loop
# ---------------------------------------------------------------------------------------------------------------------

# Rules whose weight slides. The other one with a weight, kl, has nothing to punish before the first update.
WEIGHED = ("relaxed", "practical", "exact", "overconfidence", "leverage")


def step(env: BuildEnvironment) -> tuple[str, Markup, dict[str, Any]] | None:
    """The candidates of some prompts as the chapter's run wrote and judged them; the weight of the penalties slides."""
    results = read_results(env, "llm_pipeline")["results"]
    prompts = results.get("step")
    if not prompts:
        return None
    rules = [rule for rule in WEIGHED if rule in prompts[0]["penalty"]]
    arms = looks(["standard", *rules, "best-of-u"])
    radios = [
        checkbox("rule", Markup("{} {}").format(swatch(arms[rule]), rule), rule, rule == rules[0], "radio")
        for rule in rules
    ]
    first = prompts[0]
    item = Markup('<li><p class="text">{}</p><p class="numbers"></p></li>')
    items = Markup("").join(item.format(text or "(no text)") for text in first["texts"])
    written = Markup(
        '<div class="across"><p class="reference"><b>Reference, by the base:</b> <span>{}</span></p>'
        '<ol class="candidates">{}</ol></div>'
    )
    form = [
        choice("prompt", "Prompt", [(i, f"{i + 1}: {each['prompt']}") for i, each in enumerate(prompts)]),
        switches("Rule", radios),
        Markup('<div class="across">{}</div>').format(
            slider("weight", "Weights, in units of the chapter’s γ", 0, 3, 0.05, 1)
        ),
        written.format(first["reference"], items),
        chart("scores", "Score of each candidate against the weight of the penalty; the highest line wins"),
        numbers_table("Who wins at these weights", ["Rule", "γ", "Candidate"], arms),
        reset("The chapter’s weights") + STATUS,
    ]
    kept = [each | {"penalty": {rule: each["penalty"][rule] for rule in rules}} for each in prompts]
    data = {"prompts": kept, "gamma": {rule: results["gamma"][rule] for rule in rules}, "looks": arms}
    return "Explorer: one step of the loop", Markup("").join(form), data


# ---------------------------------------------------------------------------------------------------------------------
# The study's runs
# ---------------------------------------------------------------------------------------------------------------------

# So many of the prompts whose texts are stored can be read: a file of texts then has room for ten seeds of an arm.
PROMPTS = 3
WHEN = ("At the start", "Halfway", "At the end")


def stored_runs(env: BuildEnvironment) -> dict[str, list[dict[str, Any]]]:
    """The study's runs in groups of one setting, stage and arm: each with the part of its files' names before the seed.

    The chapter's main setting comes first and pilots last; of a setting standard RLHF comes first.
    """
    folder = read_results(env, "llm_study")["parameters"]["runs"]
    groups: dict[str, list[dict[str, Any]]] = {}
    for path in Path(env.srcdir, "notebooks", "runs", folder).glob("*.json"):
        run = read_run(env, f"{folder}/{path.stem}")
        if run["stage"] != "tuning":  # tuning looks at no held-out prompt
            groups.setdefault(path.stem.rpartition("-")[0], []).append(run)

    def weight(name: str) -> tuple[Any, ...]:
        run = groups[name][0]
        return run["stage"] == "pilot", run["setting"] != "planted", run["setting"], run["arm"] != "standard", name

    return {name: sorted(groups[name], key=lambda run: run["seed"]) for name in sorted(groups, key=weight)}


def setting_of(run: dict[str, Any]) -> str:
    return run["setting"] + (" (pilot)" if run["stage"] == "pilot" else "")


def texts_of(run: dict[str, Any], prompts: Sequence[str]) -> list[dict[str, Any]]:
    """What a run wrote at each look: for each prompt its utility and its text; and the RM's reward of all texts."""
    looked = []
    for look in run["watched"]:
        there = look["heldout"]
        step = len(there["utility"]) // len(there["texts"])  # the texts of one prompt in so many are kept
        places = {name: place * step for place, name in enumerate(there["texts"])}
        own = [[round(there["utility"][places[name]], 2), there["texts"][name]] for name in prompts]
        looked.append({"reward": round(there["reward"], 3), "texts": own})
    return looked


def point_of(look: dict[str, Any]) -> tuple[float, float]:
    """KL and held-out utility of a look."""
    there = look["heldout"]
    return round(there["kl"], 1), round(sum(there["utility"]) / len(there["utility"]), 2)


def plane(env: BuildEnvironment) -> tuple[str, Markup, dict[str, Any], dict[str, Any]] | None:
    """The stored runs as points of KL and held-out utility; texts of an arm lie in a file that is fetched on demand."""
    groups = stored_runs(env)
    if not groups:
        return None
    opened, first = next((name, runs[0]) for name, runs in groups.items())
    prompts = list(first["watched"][0]["heldout"]["texts"])[:PROMPTS]
    asked = prompt_texts()
    arms = looks(dict.fromkeys(runs[0]["arm"] for runs in groups.values()))
    data: dict[str, Any] = {
        "looks": arms,
        "prompts": [asked[name] for name in prompts],
        "groups": [
            {
                "name": name,  # which holds setting, stage and arm
                "seeds": [run["seed"] for run in runs],
                # But for the first KL, that of the base from itself.
                "runs": [[each for look in run["watched"] for each in point_of(look)][1:] for run in runs],
            }
            for name, runs in groups.items()
        ],
    }
    files = {
        f"plane-{name}.js": f'explorer.texts("{name}",{dumps([texts_of(run, prompts) for run in runs])});'
        for name, runs in groups.items()
    }
    looked = texts_of(first, prompts)
    points = [point_of(look) for look in first["watched"]]
    blocks = [
        Markup('<div class="look"><p class="when">{}</p><p class="numbers">{}</p><p class="text">{}</p></div>').format(
            when, told(point, look), look["texts"][0][1] or "(no text)"
        )
        for when, point, look in zip(WHEN, points, looked, strict=False)
    ]
    legend = Markup(
        '<p class="across">{}<br>Halfway hollow, at the end filled; thick is the run whose texts stand here.</p>'
    )
    entry = Markup('<span class="unbroken">{} {}</span>')
    title = f"{setting_of(first)}: {first['arm']}, seed {first['seed']}"
    form = [
        choice("run", "Run", [(f"{opened}-{first['seed']}", title)], "pick"),
        choice("question", "Held-out question", enumerate(data["prompts"]), "pick"),
        chart("runs", "Held-out utility U against the KL divergence from the base: runs of one setting", height=300),
        Markup('<div class="texts">{}</div>').format(Markup("").join(blocks)),
        legend.format(Markup(" ").join(entry.format(swatch(look), arm) for arm, look in arms.items())),
        STATUS,
    ]
    return "Explorer: runs of the study", Markup("").join(form), data, files


def told(point: Sequence[float], look: dict[str, Any], place: int = 0) -> str:
    """The numbers beside a text, as the script writes them too."""
    kl, utility = point
    own = look["texts"][place][0]
    return f"KL {kl:.1f}, U {utility:.2f}, RM {look['reward']:.2f}; this text: U {own:.2f}".replace("-", "−")


def prompt_texts() -> dict[str, str]:
    """Name of a held-out prompt -> its question."""
    from fpo.llm import load_prompts

    return {prompt.id: prompt.text for prompt in load_prompts("packaged:heldout", 10**6)}
