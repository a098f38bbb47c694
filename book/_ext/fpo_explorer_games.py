"""The explorers of the two games: for each a title, its form as HTML and its numbers.

Parts of fpo that take a while to load are imported where a page needs them.
"""

from collections.abc import Callable
from typing import Any

from fpo_book import look_up, read_results, read_run
from fpo_claims import read_claims
from fpo_explorer_parts import (
    STATUS,
    chart,
    checkbox,
    choice,
    looks,
    numbers_table,
    plain,
    reset,
    short,
    slider,
    swatch,
    switches,
)
from markupsafe import Markup
from sphinx.environment import BuildEnvironment

# ---------------------------------------------------------------------------------------------------------------------
# The linear game
# ---------------------------------------------------------------------------------------------------------------------

ALL = ["standard", "relaxed", "practical", "foresight"]
# Setting: label, least, most and step of its slider.
LINEAR = {
    "gamma": ("Weight γ", 0, 1, 0.005),
    "foresight_steps": ("Horizon k", 0, 100, 1),
    "action_cost": ("Action cost c", 0, 1, 0.005),
    "rm_lr": ("RM rate η", 0, 0.03, 0.0005),
    "rm_decay": ("RM decay δ", 0, 0.01, 0.0001),
    "steps": ("Iterations", 20, 1000, 1),
    "target": ("Target τ", 0, 4, 0.05),
    "initial_noise": ("First RM’s error", 0, 1, 0.01),
}
# Iterations after which runs have come to rest, and their directions still are what they were.
LONG = 1000
# What stays as in the chapter.
LINEAR_FIXED = ("policy_lr", "inner_steps", "utility_scale", "utility_sharpness", "signal_dimensions")


def linear_presets(parameters: dict[str, Any], results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The chapter's claims that the explorer can show: claim -> what is set other than in the chapter.

    All but `linear-spread`, whose labels lie beside the action, at random: three sums a seed do not hold such a game.
    """
    gamma, eta, cost = (parameters[name] for name in ("gamma", "rm_lr", "action_cost"))
    horizon = int(look_up(results, "ladder.edge"))
    return {
        "linear-collapse": {"arms": ["standard"]},
        "linear-relaxed": {"arms": ["standard", "relaxed"]},
        "linear-practical": {"arms": ["standard", "practical"]},
        "linear-noise": {"arms": ["standard", "relaxed", "practical"]},
        "linear-ray": {"through_oracle": False},
        "linear-rest": {"arms": ["standard"], "steps": LONG},
        "linear-slope": {"arms": ["standard"], "initial_noise": 0},
        "linear-ridge": {"arms": ["standard"], "action_cost": cost + gamma},
        "linear-direction": {"arms": ["standard", "practical"], "steps": LONG},
        "linear-cost": {"arms": ["standard"], "action_cost": look_up(results, "ridge.best_cost")},
        "linear-stop": {"arms": ["standard"], "steps": look_up(results, "ridge.stop")},
        "linear-detached": {"arms": ["standard", "relaxed"], "through_oracle": False},
        "linear-oracle": {"arms": ["relaxed", "foresight"]},
        "linear-frozen": {"arms": ["standard", "relaxed"], "rm_lr": 0, "rm_decay": 0},
        "linear-horizon": {"arms": ["relaxed", "foresight"], "gamma": 2 * eta * horizon, "foresight_steps": horizon},
    }


def linear(env: BuildEnvironment) -> tuple[str, Markup, dict[str, Any]]:
    """The linear game, live: a seed is three sums over its draws, see book/_static/explorers/linear.js."""
    from fpo.linear import Config, initial_weights

    results = read_results(env, "linear")
    parameters = results["parameters"]
    config = Config(**{name: value for name, value in parameters.items() if name in Config.model_fields})
    config = config.replace(seeds=config.seeds[:64], initial_noise=1.0)
    drawn = initial_weights(config) - initial_weights(config.replace(initial_noise=0.0))
    signal = config.signal_dimensions
    draws = [[z[:signal].sum(), z @ z, z[signal:] @ z[signal:]] for z in drawn]
    presets = linear_presets(parameters, results)
    claims = [claim for claim in read_claims(env, "linear") if claim["id"] in presets]
    arms = looks(ALL)
    data = {
        "game": {
            "draws": [[round(float(each), 6) for each in row] for row in draws],
            **{name: parameters[name] for name in LINEAR_FIXED},
        },
        "drop": parameters["collapse_drop"],
        "looks": arms,
        "claims": [
            {"found": plain(f"{claim['verdict']}: {claim['value']}."), "settings": presets[claim["id"]]}
            for claim in claims
        ],
        "unclaimed": "Settings of your own, or the chapter’s with all four arms.",
    }
    options = [("", "none of them"), *((i, plain(claim["statement"])) for i, claim in enumerate(claims))]
    boxes = [checkbox("arms", swatch(look) + Markup(" {}").format(arm), arm) for arm, look in arms.items()]
    sliders = Markup("").join(
        slider(name, *spec, parameters[name], [values[name] for values in presets.values() if name in values])
        for name, spec in LINEAR.items()
    )
    through = checkbox("through_oracle", "The penalty may see the slope of U", checked=parameters["through_oracle"])
    share = f"{parameters['collapse_drop']:.0%}"
    heads = ("Arm", "Collapse", "Median end", "Median peak")
    form = [
        choice("claim", "A claim of the chapter", options, more=" data-derived"),
        Markup('<p class="claim-found across"></p>'),
        switches("Arms", boxes),
        chart("time", "True utility U over iterations: a faint line for each seed, a thick one for an arm’s median"),
        Markup('<div class="across">{}</div>').format(
            numbers_table(f"How many runs collapse, that is, lose over {share} of their peak", heads, arms)
        ),
        Markup('<div class="sliders across">{}{}</div>').format(sliders, through),
        chart(
            "plane", "Paths of the action: norm of its signal against that of its noise, over contours of U", height=220
        ),
        reset("The chapter’s settings"),
        Markup('<p class="took across"></p>') + STATUS,
    ]
    return "Explorer: the linear game", Markup("").join(form), data


# ---------------------------------------------------------------------------------------------------------------------
# The neural study
# ---------------------------------------------------------------------------------------------------------------------

# Heading -> rows: the study's entry, the arm whose look it has, and its name, with the weight chosen on other seeds.
NEURAL = {
    "At the paper’s weights": [(f"paired.{arm}", arm, arm) for arm in ("standard", "relaxed", "practical", "exact")],
    "At weights tuned on other seeds": [
        ("tuned.action_cost", "standard", "standard, c = {action_cost:g}"),
        ("tuned.gamma_relaxed", "relaxed", "relaxed, γ = {gamma_relaxed:g}"),
        ("tuned_for.loose.gamma_relaxed", "relaxed", "relaxed, γ = {loose:g}"),
        ("tuned.gamma_practical", "practical", "practical, γ = {gamma_practical:g}"),
        ("tuned.gamma_exact", "exact", "exact, γ = {gamma_exact:g}"),
    ],
    "With and without the slope of U in the penalty": [
        ("through", "relaxed", "relaxed, with"),
        ("detached", "exact", "exact, without"),
        ("tuned.detached", "exact", "same, γ = {detached:g}"),
    ],
}


def neural_study(read: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """The study and what came later of it; `read` reads a stored run by name."""
    return read("neural_rest")["results"]["study"] | read("neural_64_seeds")["results"]["study"]


def neural(env: BuildEnvironment) -> tuple[str, Markup, dict[str, Any]]:
    """The stored study of the neural game: ends and peaks of all runs, counted at any mark."""
    parameters = read_results(env, "neural")["parameters"]
    study = {"results": neural_study(lambda name: read_run(env, name))}
    chosen = look_up(study, "chosen") | {"loose": look_up(study, "chosen_for.loose.gamma_relaxed")}
    arms = looks(["standard", "relaxed", "practical", "exact"])
    rows, body = [], []
    for heading, entries in NEURAL.items():
        body.append(Markup('<tr class="heading"><th colspan="3" scope="rowgroup">{}</th></tr>').format(heading))
        for entry, arm, name in entries:
            runs = look_up(study, entry)
            pairs = zip(runs["final"], runs["peak"], strict=True)
            rows.append({"arm": arm, "runs": [[short(end), short(peak)] for end, peak in pairs]})
            cell = Markup('<td><svg class="strip" viewBox="0 0 160 20" aria-hidden="true"></svg></td><td></td>')
            label = Markup("{} {}").format(swatch(arms[arm]), name.format(**chosen))
            body.append(Markup('<tr data-row><th scope="row">{}</th>{}</tr>').format(label, cell))
    best, margin = parameters["utility_scale"], parameters["saved_margin"]
    head = Markup("").join(
        Markup('<th scope="col">{}</th>').format(each) for each in ("Arm", f"0 to {best:g}", "Saved")
    )
    caption = "Where the runs of each arm ended, filled where saved, and how many are"
    table = Markup("<table><caption>{}</caption><thead><tr>{}</tr></thead>{}</table>").format(
        caption, head, Markup("<tbody>{}</tbody>").format(Markup("").join(body))
    )
    turned = slider("margin", "Margin of “saved”", 0.05, best / 2, 0.05, margin)
    form = [
        chart("counts", "Saved runs against the margin, a line for each arm; the margin that is set is marked"),
        Markup('<div class="turned">{}<p class="rule"></p>{}</div>').format(turned, reset("The chapter’s margin")),
        Markup('<div class="across">{}</div>').format(table),
        STATUS,
    ]
    return "Explorer: who is saved", Markup("").join(form), {"best": best, "looks": arms, "rows": rows}
