"""The language-model loop: one prompt, one candidate, batch size 1, two copies of the model, gradients by autograd."""

import numpy as np
import torch


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
        from fpo.llm.head import head_pairs
        from fpo.llm.prompts import order
        from fpo.llm.weights import packaged_encoder, packaged_policy

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

        s, prompt = self.settings, self.order[position]
        messages = [{"role": "system", "content": s.system}, {"role": "user", "content": self.prompts[prompt].text}]
        shown = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids = self.tokenizer(shown, add_special_tokens=False).input_ids
        reference = self.write(self.base, ids, uniforms(s.seed, "reference", prompt, (1, s.max_new_tokens))[0])
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
