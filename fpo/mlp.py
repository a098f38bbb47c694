"""Batched MLP reward models: rewards, gradients in their parameters and in the action, and H^-1 g, in closed form.

R reward models are one batch, and n actions of each are rows: tensors (R, n, d). The activation is Softplus unless one
is given. With g(y) = grad_phi r(y), the penalties of the neural game need |g|^2 or <a, g> and their gradients in y: two
vectors a layer stand for the gradient of a weight matrix, and no second derivative is ever formed.
"""

from collections.abc import Callable
from functools import reduce
from operator import add
from typing import NamedTuple

import torch
from torch.nn.functional import softplus

from fpo.landscapes import Landscape

Layers = list[tuple[torch.Tensor, torch.Tensor]]
Factors = list[tuple[torch.Tensor, torch.Tensor]]
Ways = list[tuple[torch.Tensor, torch.Tensor]]


def factors(
    layers: Layers,
    inputs: torch.Tensor,
    activation: Callable[[torch.Tensor], torch.Tensor] = softplus,
    slope: Callable[[torch.Tensor], torch.Tensor] = torch.sigmoid,
) -> tuple[torch.Tensor, Factors]:
    """Rewards r(y) of a scalar-valued MLP and their gradients in phi, as the factors of outer products.

    With activations a_l and back-propagated deltas d_l = dr / d(pre-activation l), the gradient of layer l is
    d_l a_(l-1)^T in the weight and d_l in the bias. Two vectors a layer stand for a matrix.

    Parameters
    ----------
    layers : list of (weight, bias)
        Of shapes (..., out, in) and (..., out), the last one with out = 1 and no activation after it. Leading axes are
        a batch of MLPs.
    inputs : tensor (..., n, in)
        A row per sample.
    activation, slope : callables
        The activation and its derivative, elementwise.

    Returns
    -------
    rewards : tensor (..., n)
    factors : list of (d_l, a_(l-1))
        Of shapes (..., n, out) and (..., n, in), one for each layer.

    Raises
    ------
    ValueError
        If the last layer has more than one output.

    Examples
    --------
    >>> one = [(torch.tensor([[2.0, 0.0]]), torch.tensor([1.0]))]
    >>> factors(one, torch.tensor([[3.0, 4.0]]), torch.tanh, lambda x: 1 - torch.tanh(x) ** 2)
    (tensor([7.]), [(tensor([[1.]]), tensor([[3., 4.]]))])
    """
    if layers[-1][0].shape[-2] != 1:
        raise ValueError(f"the last layer has {layers[-1][0].shape[-2]} outputs: a reward model must have 1")
    activations, slopes = [inputs], []
    for weight, bias in layers[:-1]:
        before = (activations[-1] @ weight.mT).add_(bias[..., None, :])
        activations.append(activation(before))
        slopes.append(slope(before))
    weight, bias = layers[-1]
    rewards = activations[-1] @ weight.mT + bias[..., None, :]
    deltas = [torch.ones_like(rewards)]
    for (weight, _), s in zip(layers[:0:-1], slopes[::-1], strict=True):
        # Below the output the delta is 1: its product with the weight is the weight.
        deltas.insert(0, (weight if len(deltas) == 1 else deltas[0] @ weight) * s)
    return rewards[..., 0], list(zip(deltas, activations, strict=True))


def gradient_norms(factors: Factors) -> torch.Tensor:
    """|grad_phi r(y)|^2 = sum_l |d_l|^2 (|a_(l-1)|^2 + 1) from `factors`, without forming a gradient: (..., n).

    Examples
    --------
    >>> gradient_norms([(torch.tensor([[1.0]]), torch.tensor([[3.0, 4.0]]))])
    tensor([26.])
    """
    return reduce(add, ((d * d).sum(-1) * ((a * a).sum(-1) + 1) for d, a in factors))


def kernel(first: Factors, second: Factors) -> torch.Tensor:
    """<grad_phi r(x), grad_phi r(y)> = sum_l <d_l(x), d_l(y)> (<a_(l-1)(x), a_(l-1)(y)> + 1): (..., n, m).

    This is the empirical neural tangent kernel (Jacot et al. 2018); with `second = first`, the Gram matrix.

    Examples
    --------
    >>> x, y = (torch.tensor([[1.0]]), torch.tensor([[3.0, 4.0]])), (torch.tensor([[2.0]]), torch.tensor([[1.0, 0.0]]))
    >>> kernel([x], [y])
    tensor([[8.]])
    """
    return reduce(add, ((d @ e.mT) * (a @ b.mT + 1) for (d, a), (e, b) in zip(first, second, strict=True)))


def reward(layers: Layers, y: torch.Tensor) -> torch.Tensor:
    """r(y) of one RM, or of a batch of them, for y of shape (..., n, d): shape (..., n)."""
    for weight, bias in layers[:-1]:
        y = softplus((y @ weight.mT).add_(bias[..., None, :]))
    weight, bias = layers[-1]
    return (y @ weight.mT + bias[..., None, :])[..., 0]


class Objective(NamedTuple):
    """What R runs climb: r - cost |y - c|^2 - (error_weight (r - U) + norm_weight) M, where M is |g|^2 or <a, g>.

    `cost` and both weights have shape (R, 1), and so has `through_oracle`, which says in which runs the gradient sees
    how U changes (None: in none). The cost's center c has shape (R, 1, d) (None: 0).
    """

    cost: torch.Tensor
    error_weight: torch.Tensor
    norm_weight: torch.Tensor
    through_oracle: torch.Tensor | None
    utility: Landscape
    center: torch.Tensor | None = None

    def away(self, y: torch.Tensor) -> torch.Tensor:
        """y - c."""
        return y if self.center is None else y - self.center


class Direction(NamedTuple):
    """a = sum_j coefficients_j g(x_j) of R runs: coefficients (R, 1, k) and the factors of k gradients."""

    coefficients: torch.Tensor
    factors: Factors


def gradient_by_autograd(
    layers: Layers, y: torch.Tensor, offset: torch.Tensor | None, objective: Objective, a: Direction | None = None
) -> torch.Tensor:
    """grad_y of the objective of R runs at y (R, 1, d), with U read at y - offset, or at y: the readable route."""
    with torch.enable_grad():
        y = y.detach().requires_grad_()
        away = objective.away(y)
        cost = objective.cost * (away * away).sum(-1)
        r, here = factors(layers, y)
        through = objective.through_oracle
        u = objective.utility((y if through is not None else y.detach()) - (0 if offset is None else offset))
        if through is not None:
            u = torch.where(through, u, u.detach())
        m = gradient_norms(here) if a is None else (a.coefficients * kernel(here, a.factors)).sum(-1)
        penalty = (objective.error_weight * (r - u) + objective.norm_weight) * m
        return torch.autograd.grad((r - cost - penalty).sum(), y)[0]


def both_ways(layers: Layers) -> Ways:
    """For each layer W^T and W, stored as one row times them is fastest; for many gradients at the same layers.

    A widening layer's products go along its stored rows, the others' across them: on a CPU twice as fast, measured.
    """
    turned = [weight.mT.contiguous() for weight, _ in layers]
    return [
        (weight.mT, turn.mT) if weight.shape[-1] < weight.shape[-2] else (turn, weight)
        for (weight, _), turn in zip(layers, turned, strict=True)
    ]


def gradient_in_closed_form(
    layers: Layers,
    y: torch.Tensor,
    offset: torch.Tensor | None,
    objective: Objective,
    a: Direction | None = None,
    ways: Ways | None = None,
) -> torch.Tensor:
    """The same gradient by hand, in three passes through the layers.

    The product rule leaves grad r and grad M:

        (1 - e M) grad r + e M grad U - (e (r - U) + norm_weight) grad M - 2 cost (y - c),    e = error_weight.

    M is a function of the activations a_l and the deltas d_l. Its derivatives in them, one at a time, go up through
    the recursion of the deltas, d_l = (d_(l+1) W_(l+1)) * s_l, and then down through that of the activations. `ways`
    are the layers' `both_ways`, where a caller has them.
    """
    up, down = zip(*(ways or [(weight.mT, weight) for weight, _ in layers]), strict=True)
    x, s = [y], []
    for (_, bias), turned in zip(layers[:-1], up, strict=False):
        z = torch.baddbmm(bias[:, None], x[-1], turned)
        x.append(softplus(z))
        s.append(torch.sigmoid(z))
    r = torch.baddbmm(layers[-1][1][:, None], x[-1], up[-1])
    # Below the output the delta is 1: its product with the weight is the weight.
    q = [layers[-1][0]]
    d = [q[0] * s[-1]]
    for weight, slope in zip(down[-2:0:-1], s[-2::-1], strict=True):
        q.insert(0, d[0] @ weight)
        d.insert(0, q[0] * slope)

    if a is None:
        # Half of the derivatives: the 2 of the squares is put into their weight.
        n = [(x_l * x_l).sum(-1, keepdim=True) + 1 for x_l in x]
        k = [(d_l * d_l).sum(-1, keepdim=True) for d_l in d]
        m = n[-1]
        for n_l, k_l in zip(n, k, strict=False):
            m = torch.addcmul(m, n_l, k_l)
        by_x = [*(x_l * k_l for x_l, k_l in zip(x, k, strict=False)), x[-1]]
        by_d = [d_l * n_l for d_l, n_l in zip(d, n, strict=False)]
    else:
        c, there = a.coefficients, a.factors
        n = [torch.addcmul(c, c, x_l @ x_all.mT) for x_l, (_, x_all) in zip(x, there, strict=True)]
        k = [d_l @ d_all.mT for d_l, (d_all, _) in zip(d, there, strict=False)]
        m = n[-1].sum(-1, keepdim=True)
        for n_l, k_l in zip(n, k, strict=False):
            m = m + (n_l * k_l).sum(-1, keepdim=True)
        by_x = [(c * k_l) @ x_all for k_l, (_, x_all) in zip(k, there, strict=False)]
        by_x.append(c @ there[-1][1])
        by_d = [n_l @ d_all for n_l, (d_all, _) in zip(n[:-1], there, strict=False)]

    by_s = []
    for i, slope in enumerate(s):
        by_s.append(by_d[i] * q[i])
        if i + 1 < len(s):
            by_d[i + 1] = torch.baddbmm(by_d[i + 1], by_d[i] * slope, up[i + 1])
    by_z = by_x[-1]
    for i in reversed(range(len(s))):
        curved = torch.addcmul(by_s[i], by_s[i], s[i], value=-1)
        by_z = (by_z + curved) * s[i]
        if i:
            by_z = torch.baddbmm(by_x[i], by_z, down[i])

    e, at = objective.error_weight[..., None], y if offset is None else y - offset
    u = objective.utility(at)[..., None]
    weight = torch.addcmul(objective.norm_weight[..., None], e, r - u)
    if a is None:
        weight = weight + weight
    em = e * m
    # grad r and grad M end with the same product.
    uphill = (d[0] - em * d[0] - weight * by_z) @ down[0] - weight * by_x[0]
    uphill = uphill - 2 * objective.cost[..., None] * objective.away(y)
    if objective.through_oracle is None:
        return uphill
    return uphill + objective.through_oracle[..., None] * em * objective.utility.gradient(at)


class GaussNewton(NamedTuple):
    """H = sum_i 2 w_i g_i g_i^T + ridge I of n labeled actions, prepared for H^-1 through an n x n matrix.

    `factors` has n + 1 rows, the last one free for a point to come; `inverse` (R, n, n) is the matrix of
    `inverse_times_gradient`.
    """

    factors: Factors
    inverse: torch.Tensor
    ridge: float


def gauss_newton(layers: Layers, y: torch.Tensor, sample_weights: torch.Tensor, ridge: float) -> GaussNewton:
    """The Gauss-Newton Hessian of sum_i w_i (r(y_i) - label_i)^2 + (ridge / 2) |phi|^2, by its Gram matrix.

    Shapes: y (R, n, d), sample_weights (n,). A run whose matrix has no Cholesky factor gets NaN.
    """
    _, rows = factors(layers, torch.cat([y, y[:, :1]], 1))
    gram = kernel(rows, rows)[:, :-1, :-1]
    root = (2 * sample_weights).sqrt()
    inner = root[:, None] * gram * root
    inner.diagonal(dim1=-2, dim2=-1).add_(ridge)
    cholesky, info = torch.linalg.cholesky_ex(inner)
    cholesky[info != 0] = torch.nan
    return GaussNewton(rows, root[:, None] * torch.cholesky_inverse(cholesky) * root, ridge)


def inverse_times_gradient(layers: Layers, theta: torch.Tensor, hessian: GaussNewton) -> Direction:
    """a = H^-1 g(theta) as a sum of gradients, for theta (R, 1, d).

    The Woodbury identity of `steering.gram_solver` in function space. With D = 2 diag(sample_weights), the labeled
    actions' kernel K, and k = (<g_i, g(theta)>)_i,

        a = (g(theta) - sum_i b_i g_i) / ridge,    b = D^(1/2) (D^(1/2) K D^(1/2) + ridge I)^-1 D^(1/2) k.

    g(theta) is written to the last row of the Hessian's factors.
    """
    _, here = factors(layers, theta)
    for (d, x), (d_all, x_all) in zip(here, hessian.factors, strict=True):
        d_all[:, -1:], x_all[:, -1:] = d, x
    k = kernel(here, hessian.factors)
    b = k[..., :-1] @ hessian.inverse
    return Direction(torch.cat([-b, torch.ones_like(b[..., :1])], -1) / hessian.ridge, hessian.factors)


def refit(
    layers: Layers, y: torch.Tensor, labels: torch.Tensor, sample_weights: torch.Tensor, ridge: float
) -> Direction:
    """a that makes r + <a, g> the RM's exact answer to n labels, in the model that is linear in phi: ridge regression.

    a minimizes sum_i w_i (r(y_i) + <a, g_i> - labels_i)^2 + (ridge / 2) |a|^2. With D = 2 diag(w), the kernel K of the
    labeled actions and their errors, a = sum_i c_i g_i with

        c = D^(1/2) (D^(1/2) K D^(1/2) + ridge I)^-1 D^(1/2) (labels - r).

    Shapes: y (R, n, d), labels (R, n), sample_weights (n,). A run whose matrix has no Cholesky factor gets NaN.
    """
    hessian = gauss_newton(layers, y, sample_weights, ridge)
    missing = (labels - reward(layers, y))[:, None]
    return Direction(missing @ hessian.inverse, [(d[:, :-1], x[:, :-1]) for d, x in hessian.factors])


def rm_gradient(layers: Layers, y: torch.Tensor, labels: torch.Tensor, sample_weights: torch.Tensor) -> Layers:
    """Gradient of sum_i w_i (r(y_i) - labels_i)^2 in the parameters of R reward models.

    Shapes: y (R, n, d), labels (R, n), sample_weights (n,).
    """
    with torch.enable_grad():
        free = [(weight.detach().requires_grad_(), bias.detach().requires_grad_()) for weight, bias in layers]
        loss = (sample_weights * (reward(free, y) - labels).square()).sum()
        slopes = iter(torch.autograd.grad(loss, [tensor for layer in free for tensor in layer]))
        return list(zip(slopes, slopes, strict=True))
