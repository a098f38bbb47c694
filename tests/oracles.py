"""Slow and obvious references, written from the equations. Each is a check of, and the baseline for, a fast route."""

import numpy as np
import torch


def linear_utility(y, config):
    """U(y) of the linear game for one action."""
    t = np.zeros(config.dimensions)
    t[: config.signal_dimensions] = config.target
    return config.utility_scale * np.exp(-config.utility_sharpness * np.sum((y - t) ** 2))


def rm_steps(w, y, u, count, config, decay=None):
    """`count` literal RM steps at a fixed action y with utility u."""
    decay = config.rm_decay if decay is None else decay
    for _ in range(count):
        w = (1 - decay) * w + config.rm_lr * 2 * (u - w @ y) * y
    return w


def linear_objective(arm, y, w, config, oracle=None):
    """What one arm's leader climbs at one action; `oracle` replaces U(y) where it is held constant."""
    u = linear_utility(y, config) if oracle is None else oracle
    value = w @ y - config.action_cost * (y @ y)
    if arm == "relaxed":
        value -= config.gamma * (w @ y - u) * (y @ y)
    if arm == "practical":
        value -= config.gamma * (y @ y)
    if arm == "foresight":
        value += rm_steps(w, y, u, config.foresight_steps, config, decay=0.0) @ y - w @ y
    return value


def differences(function, y, step, central=False):
    """Finite differences, one coordinate at a time."""
    g = np.zeros_like(y)
    for i in range(len(y)):
        move = np.zeros_like(y)
        move[i] = step
        back = move if central else 0 * move
        g[i] = (function(y + move) - function(y - back)) / (2 * step if central else step)
    return g


def linear_run(seed, arm, config):
    """One seed of one arm as a plain loop with forward differences: arrays (steps + 1,) of utility, signal, noise.

    This is the release's algorithm as the paper states it; `fpo.linear` must give the same numbers.
    """
    w = np.random.RandomState(seed).normal(0, config.initial_noise, config.dimensions)
    w[: config.signal_dimensions] += 1
    y = np.zeros(config.dimensions)
    rows = []
    for t in range(config.steps + 1):
        rows.append(
            (
                linear_utility(y, config),
                np.linalg.norm(y[: config.signal_dimensions]),
                np.linalg.norm(y[config.signal_dimensions :]),
            )
        )
        if t == config.steps:
            break
        held = None if config.through_oracle else linear_utility(y, config)
        y = y + config.policy_lr * differences(
            lambda z, w=w, held=held: linear_objective(arm, z, w, config, held), y, config.difference
        )
        w = rm_steps(w, y, linear_utility(y, config), 1, config)
    return tuple(np.array(rows).T)


class SoftmaxGame:
    """A Stackelberg game with a softmax policy over n actions and an RM that is linear in features (n, p).

    The RM is refitted to convergence for every theta; the gradient of F(theta) = sum_y pi(y) r_phi*(y) comes from
    unrolled gradient descent, or from central differences.
    """

    def __init__(self, features, utilities, theta, feedback, ridge, reference):
        self.features, self.utilities, self.theta = features, utilities, theta
        self.feedback, self.ridge, self.reference = feedback, ridge, reference

    @classmethod
    def random(cls, actions, parameters, feedback, ridge, seed):
        g = torch.Generator().manual_seed(seed)
        features, reference = torch.randn(actions, parameters, generator=g), torch.randn(parameters, generator=g)
        utilities, theta = torch.randn(2, actions, generator=g)
        return cls(features, utilities, theta, feedback, ridge, reference)

    def differences(self):
        return self.features - self.reference if self.feedback == "bradley-terry" else self.features

    def loss(self, theta, phi):
        margins, pi = self.differences() @ phi, torch.softmax(theta, 0)
        if self.feedback == "regression":
            each = (margins - self.utilities).square() / 2
        else:
            # The reference's utility is 0.
            target = torch.sigmoid(self.utilities)
            each = torch.nn.functional.binary_cross_entropy_with_logits(margins, target, reduction="none")
        return pi @ each + self.ridge / 2 * phi @ phi

    def hessian(self, theta, phi):
        return torch.autograd.functional.hessian(lambda p: self.loss(theta, p), phi.detach())

    def fit(self, theta):
        """Newton's method until it stands still."""
        phi = torch.zeros(self.features.shape[1], dtype=self.features.dtype)
        for _ in range(100):
            rows, d = self.at(theta, phi), self.differences()
            gradient = rows["probabilities"] @ rows["loss_gradients"] + self.ridge * phi
            hessian = d.T @ (rows["curvature"][:, None] * d) + self.ridge * torch.eye(len(phi), dtype=phi.dtype)
            step = torch.linalg.solve(hessian, gradient)
            phi = phi - step
            if float(step.abs().max()) <= 1e-14 * (1 + float(phi.abs().max())):
                return phi
        raise RuntimeError("Newton's method did not settle")

    def unrolled_gradient(self, theta):
        """Gradient descent on the RM from 0, differentiated step by step, until both have stopped moving."""
        theta = theta.detach().requires_grad_()
        top = float((self.differences().square().sum(1)).max()) + self.ridge
        # The error falls by 1 - ridge / top a step: this many take it to e^-32.
        steps = int(32 * top / self.ridge) + 10
        phi = torch.zeros(self.features.shape[1], dtype=self.features.dtype)
        d, pi = self.differences(), torch.softmax(theta, 0)
        for _ in range(steps):
            margins = d @ phi
            if self.feedback == "regression":
                slope = margins - self.utilities
            else:
                slope = margins.sigmoid() - torch.sigmoid(self.utilities)
            phi = phi - (d.T @ (pi * slope) + self.ridge * phi) / top
        value = torch.softmax(theta, 0) @ (self.features @ phi)
        return torch.autograd.grad(value, theta)[0]

    def difference_gradient(self, theta, step=1e-5):
        """Central differences of F with the RM fitted anew at every point."""

        def value(t):
            return float(torch.softmax(t, 0) @ (self.features @ self.fit(t)))

        moves = step * torch.eye(len(theta), dtype=theta.dtype)
        return torch.tensor([(value(theta + m) - value(theta - m)) / (2 * step) for m in moves], dtype=theta.dtype)

    def at(self, theta, phi):
        """What the implicit route needs at the fitted RM."""
        pi, d = torch.softmax(theta, 0), self.differences()
        margins = d @ phi
        if self.feedback == "regression":
            slope, bend = margins - self.utilities, torch.ones_like(margins)
        else:
            p = margins.sigmoid()
            slope, bend = p - torch.sigmoid(self.utilities), p * (1 - p)
        return {
            "probabilities": pi,
            "scores": torch.eye(len(theta), dtype=theta.dtype) - pi,
            "rewards": self.features @ phi,
            "gradients": self.features,
            "differences": d,
            "loss_gradients": slope[:, None] * d,
            "curvature": pi * bend,
        }


def neural_rng(seed, config):
    """The release's random numbers for one seed: an endless iterator over runs, each a model and then its noise."""
    torch.manual_seed(seed)
    while True:
        widths = (config.dimensions, *config.hidden, 1)
        layers = [torch.nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False)]
        for layer in layers:
            torch.nn.init.normal_(layer.weight, 0.0, config.initial_scale)
            torch.nn.init.normal_(layer.bias, 0.0, 0.0)
        yield layers
        for _ in range(config.outer_steps):
            policy = [torch.randn(config.dimensions) for _ in range(config.inner_steps)]
            yield policy, torch.randn(config.new_samples, config.dimensions)


def neural_utility(y, config):
    """U(y) of the neural game for one action."""
    t = torch.zeros_like(y)
    t[: config.signal_dimensions] = config.target
    return config.utility_scale * torch.exp(-config.utility_sharpness * ((y - t) ** 2).sum())


def neural_penalty(arm, model, y, theta, sampled, known, config):
    """gamma R(y) of one arm at one action (y carries a graph), with whole gradients and a dense Hessian."""
    if arm == "standard" or (arm == "exact" and not known):
        return 0.0
    parameters = list(model.parameters())

    def slope(x, graph):
        rows = torch.autograd.grad(model(x)[0], parameters, create_graph=graph, retain_graph=True)
        return torch.cat([row.flatten() for row in rows])

    g = slope(y, True)
    if arm == "practical":
        return -config.gamma_practical * g @ g
    u = neural_utility(y if config.utility_at == "sample" else y - sampled, config)
    error = model(y)[0] - (u if arm in config.through_oracle else u.detach())
    if arm == "relaxed":
        return -config.gamma_relaxed * error * (g @ g)
    hessian = (config.rm_decay + config.damping) * torch.eye(len(g), dtype=g.dtype)
    for x, _ in known:
        row = slope(x, False)
        hessian += 2 * torch.outer(row, row) / len(known)
    a = torch.linalg.solve(hessian, slope(theta, False))
    return -2 * config.gamma_exact * error * (a @ g)


def neural_run(seed, arm, config, iterations=None):
    """One seed of one arm, one action at a time, by autograd through the parameter gradients: utility, reward, noise.

    The random stream is the release's; under pairing="released" every arm but the standard one first passes over the
    standard run's part of it. The arrays have one entry for each iteration, or for the first few.
    """
    dtype = getattr(torch, config.precision)
    numbers = neural_rng(seed, config)
    if config.pairing == "released" and arm != "standard":
        for _ in range(1 + config.outer_steps):
            next(numbers)
    layers = [layer.to(dtype) for layer in next(numbers)]
    pairs = [part for layer in layers for part in (layer, torch.nn.Softplus())]
    model = torch.nn.Sequential(*pairs[:-1])
    adam = torch.optim.Adam(model.parameters(), lr=config.rm_lr, weight_decay=config.rm_decay)
    theta, buffer, rows = torch.zeros(config.dimensions, dtype=dtype), [], []
    for t in range(config.outer_steps if iterations is None else iterations):
        f = 1 - (t / config.outer_steps) ** config.schedule_power
        sigma = config.sigma_end + (config.sigma - config.sigma_end) * f
        lr = config.policy_lr_end + (config.policy_lr - config.policy_lr_end) * f
        policy, more = next(numbers)
        for eps in policy:
            sampled = sigma * eps.to(dtype)
            y = (theta + sampled).requires_grad_()
            value = model(y)[0] - config.action_cost * (y @ y)
            value = value + neural_penalty(arm, model, y, theta, sampled, buffer, config)
            uphill = torch.autograd.grad(value, y)[0]
            theta = theta + lr * uphill.clamp(-config.clip, config.clip)
        with torch.no_grad():
            noise = torch.linalg.norm(theta[config.signal_dimensions :])
            rows.append([float(neural_utility(theta, config)), float(model(theta)[0]), float(noise)])
        for eps in more:
            y = theta + sigma * eps.to(dtype)
            buffer.append((y, neural_utility(y, config)))
        buffer = buffer[-config.buffer_size :]
        adam.zero_grad()
        for y, u in buffer:
            ((model(y)[0] - u) ** 2 / len(buffer)).backward()
        adam.step()
    return np.array(rows).T


# The language-model loop: one prompt, one candidate, batch size 1, two copies of the model, gradients by autograd


class _Inversion:
    """A logits processor that leaves only the word that inversion draws: the whole vocabulary sorted, cut at top_p."""

    def __init__(self, settings, stream, start, ends):
        self.settings, self.stream, self.start, self.ends = settings, stream, start, ends

    def __call__(self, ids, scores):
        step = ids.shape[1] - self.start
        if step < self.settings.min_new_tokens:
            scores[:, self.ends] = -torch.inf
        mass, words = torch.softmax(scores.float() / self.settings.temperature, -1)[0].sort(descending=True)
        mass = mass.double()
        kept = mass[mass.cumsum(0) - mass < self.settings.top_p]
        place = int((kept.cumsum(0) <= float(self.stream[step]) * kept.sum()).sum())
        chosen = torch.full_like(scores, -torch.inf)
        chosen[0, words[min(place, len(kept) - 1)]] = 0
        return chosen


class SlowLoop:
    """The loop of `fpo.llm` written from the paper's description, for the rules standard, relaxed and practical."""

    def __init__(self, settings):
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

        from fpo.llm import load_prompts
        from fpo.llm.models import packaged_encoder, packaged_policy
        from fpo.llm.oracles import head_pairs
        from fpo.llm.prompts import order

        self.settings = settings
        policy = packaged_policy() if settings.policy == "packaged" else settings.policy
        encoder = packaged_encoder() if settings.reward_model == "packaged" else settings.reward_model
        self.tokenizer = AutoTokenizer.from_pretrained(policy)
        dtype = getattr(torch, settings.dtype)
        self.base = AutoModelForCausalLM.from_pretrained(policy, dtype=dtype).eval()
        torch.manual_seed(settings.seed)
        lora = LoraConfig(
            r=settings.lora_rank,
            lora_alpha=settings.lora_alpha,
            target_modules=settings.lora_targets.split(),
            task_type="CAUSAL_LM",
        )
        self.policy = get_peft_model(AutoModelForCausalLM.from_pretrained(policy, dtype=dtype), lora).eval()
        self.encoder, self.reader = AutoModel.from_pretrained(encoder).eval(), AutoTokenizer.from_pretrained(encoder)
        self.prompts = load_prompts(settings.prompts, settings.prompt_count)
        self.order = order(len(self.prompts), settings.steps, settings.seed)
        self.head = torch.nn.Linear(self.encoder.config.hidden_size, 1, bias=False)
        better, worse = head_pairs(self.prompts, settings.head_start, settings.seed)
        with torch.no_grad():
            differences = torch.stack([self.features(a) - self.features(b) for a, b in zip(better, worse, strict=True)])
            self.head.weight.copy_(
                torch.from_numpy(bradley_terry_fit(differences.double().numpy(), settings.head_ridge))
            )
        self.trained = [value for value in self.policy.parameters() if value.requires_grad]
        self.optimizers = [
            torch.optim.AdamW(self.trained, lr=settings.policy_lr),
            torch.optim.AdamW(self.head.parameters(), lr=settings.head_lr),
        ]

    def features(self, text):
        read = self.reader(text, return_tensors="pt", truncation=True, max_length=self.settings.reward_tokens)
        with torch.no_grad():
            state = self.encoder(**read).last_hidden_state[0].mean(0)
        return state / state.norm()

    def reward_and_gradient(self, text):
        reward = self.head(self.features(text))[0]
        (gradient,) = torch.autograd.grad(reward, self.head.weight)
        return float(reward.detach()), gradient[0]

    def write(self, model, ids, stream):
        ends = [self.tokenizer.eos_token_id]
        out = model.generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            logits_processor=[_Inversion(self.settings, stream, len(ids), ends)],
            do_sample=False,
            max_new_tokens=self.settings.max_new_tokens,
            eos_token_id=ends,
            pad_token_id=self.tokenizer.eos_token_id,
        )
        return out[0, len(ids) :].tolist()

    def utility(self, ids, response):
        whole = torch.tensor([[*ids, *response]])
        with torch.no_grad():
            logits = self.base(input_ids=whole).logits[0, :-1].float()
        nll = torch.nn.functional.cross_entropy(logits, whole[0, 1:])
        return float((5 - nll).clamp(-15, 5))

    def step(self, position):
        """One prompt: everything about its candidates, the winner's losses added to the gradients."""
        from fpo.llm.decoding import uniforms

        s, place = self.settings, self.order[position]
        messages = [{"role": "system", "content": s.system}, {"role": "user", "content": self.prompts[place].text}]
        shown = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids = self.tokenizer(shown, add_special_tokens=False).input_ids
        reference = self.write(self.base, ids, uniforms(s.seed, "reference", place, (1, s.max_new_tokens))[0])
        streams = uniforms(s.seed, "candidate", position, (s.candidates, s.max_new_tokens))
        tokens = [self.write(self.policy, ids, stream) for stream in streams]
        texts = [self.tokenizer.decode(row, skip_special_tokens=True).strip() for row in (reference, *tokens)]
        utilities = [self.utility(ids, row) for row in (reference, *tokens)]
        judged = [self.reward_and_gradient(text) for text in texts]
        (first, first_gradient), scores = judged[0], []
        for (reward, gradient), utility in zip(judged[1:], utilities[1:], strict=True):
            penalty = float(gradient @ (gradient - first_gradient))
            if s.rule == "relaxed":
                penalty *= 1 / (1 + np.exp(first - reward)) - 1 / (1 + np.exp(utilities[0] - utility))
            scores.append(reward - (s.weight() * penalty if s.rule != "standard" else 0.0))
        won = int(np.argmax(scores))
        target = torch.tensor(1 / (1 + np.exp(utilities[0] - utilities[1 + won])))
        margin = self.head(self.features(texts[1 + won]) - self.features(texts[0]))[0]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(margin, target.float())
        (loss / s.window).backward()
        whole = torch.tensor([[*ids, *tokens[won]]])
        nll = self.policy(input_ids=whole, labels=whole).loss
        (nll / s.window).backward()
        if (position + 1) % s.window == 0:
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad()
        return {
            "tokens": tokens,
            "rewards": [reward for reward, _ in judged[1:]],
            "utilities": utilities[1:],
            "reference_utility": utilities[0],
            "scores": scores,
            "winner": won,
            "head_loss": float(loss.detach()),
            "policy_loss": float(nll.detach()),
        }


def bradley_terry_fit(differences, ridge):
    """w that minimizes mean log(1 + exp(-w.d)) + ridge / 2 |w|^2, by SciPy."""
    from scipy.optimize import minimize

    def value(w):
        margins = differences @ w
        slope = -(differences / (1 + np.exp(margins))[:, None]).mean(0) + ridge * w
        return np.logaddexp(0, -margins).mean() + ridge / 2 * w @ w, slope

    start = np.zeros(differences.shape[1])
    return minimize(
        value, start, jac=True, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-10, "maxiter": 5000}
    ).x
