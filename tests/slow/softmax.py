"""A softmax policy and a linear RM, by dense algebra."""

import torch


class SoftmaxGame:
    """A Stackelberg game with a softmax policy over n actions and an RM that is linear in features (n, p).

    The RM is refitted to convergence for every theta; the gradient of F(theta) = sum_y pi(y) r_phi*(y) comes from
    unrolled gradient descent, or from central differences. With the goal "margin" the reward is measured from that of
    the reference: F = sum_y pi(y) (r_phi*(y) - r_phi*(ref)).
    """

    def __init__(self, features, utilities, theta, feedback, ridge, reference, goal="reward"):
        self.features, self.utilities, self.theta = features, utilities, theta
        self.feedback, self.ridge, self.reference, self.goal = feedback, ridge, reference, goal

    @classmethod
    def random(cls, actions, parameters, feedback, ridge, seed, goal="reward"):
        g = torch.Generator().manual_seed(seed)
        features, reference = torch.randn(actions, parameters, generator=g), torch.randn(parameters, generator=g)
        utilities, theta = torch.randn(2, actions, generator=g)
        return cls(features, utilities, theta, feedback, ridge, reference, goal)

    def differences(self):
        return self.features - self.reference if self.feedback == "bradley-terry" else self.features

    def gradients(self):
        return self.features - self.reference if self.goal == "margin" else self.features

    def value(self, theta, phi):
        return torch.softmax(theta, 0) @ (self.gradients() @ phi)

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
        return torch.autograd.grad(self.value(theta, phi), theta)[0]

    def difference_gradient(self, theta, step=1e-5):
        """Central differences of F with the RM fitted anew at every point."""

        def value(t):
            return float(self.value(t, self.fit(t)))

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
            "gradients": self.gradients(),
            "differences": d,
            "loss_gradients": slope[:, None] * d,
            "curvature": pi * bend,
        }
