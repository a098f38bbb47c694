"""The steering term: how a policy moves the reward model (RM) that is retrained on what the policy writes.

The policy is the leader, the RM the follower: phi*(theta) = argmin_phi L(theta, phi), with

    L(theta, phi) = E_pi[ loss(phi; y) ] + (ridge / 2) |phi|^2,        F(theta) = E_pi[ r_phi*(y) ].

By the implicit function theorem (Gauthier, Bach and Jordan 2026, arXiv:2605.04266, the gradient decomposition)

    grad F = E_pi[ (r(y) + <g_bar, I(y)>) grad log pi(y) ],
    g_bar = E_pi[ grad_phi r ],    I(y) = -H^-1 grad_phi loss(phi*; y),    H = d2L / dphi dphi.

The first part is the standard policy gradient, the second the steering term. Everything here is a pure function of
tensors. Shapes: n samples, p parameters of the RM, q of the policy; leading axes (...) are batches.
"""

from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, cg

Solve = Callable[[torch.Tensor], torch.Tensor]


class CurvatureError(ValueError):
    """The RM's Hessian is not positive definite, so the follower's answer has no derivative to speak of."""


ADVICE = "use a larger ridge, or give a damping > 0 and report it: the direction is then that of a damped follower"


def _refuse(reason: str) -> None:
    raise CurvatureError(f"{reason}; {ADVICE}")


def _check_damping(damping: float) -> None:
    if not (np.isfinite(damping) and damping >= 0):
        raise ValueError(f"damping = {damping!r}: must be a finite number, 0 or larger")


def dense_solver(hessian: torch.Tensor, damping: float = 0.0) -> Solve:
    """v -> (H + damping I)^-1 v by one Cholesky factorization, for right-hand sides (..., n, p).

    Parameters
    ----------
    hessian : tensor (..., p, p)
        Symmetric positive definite.
    damping : float
        Added to the diagonal.

    Raises
    ------
    CurvatureError
        If H + damping I is not positive definite, or so nearly singular that no digit of the answer is certain.

    Examples
    --------
    >>> solve = dense_solver(torch.diag(torch.tensor([2.0, 4.0])))
    >>> solve(torch.tensor([[2.0, 2.0]]))
    tensor([[1.0000, 0.5000]])
    """
    _check_damping(damping)
    p = hessian.shape[-1]
    damped = hessian + damping * torch.eye(p, dtype=hessian.dtype, device=hessian.device)
    factor, info = torch.linalg.cholesky_ex(damped)
    if bool((info != 0).any()):
        _refuse(f"the Hessian is not positive definite (leading minor {int(info.max())} of {p})")
    pivots = torch.diagonal(factor, dim1=-2, dim2=-1).detach()
    # The squared ratio of the pivots bounds the condition number from below.
    worst = float((pivots.amax(-1) / pivots.amin(-1)).max() ** 2)
    if worst * torch.finfo(hessian.dtype).eps > 1:
        _refuse(f"the Hessian is singular to working precision (condition number at least {worst:.0e})")
    return lambda v: torch.cholesky_solve(v.mT, factor).mT


def gram_solver(jacobian: torch.Tensor, curvature: torch.Tensor, ridge: float, damping: float = 0.0) -> Solve:
    """v -> H^-1 v for the Gauss-Newton Hessian H = G^T D G + (ridge + damping) I, through an n x n matrix.

    With m = ridge + damping and B = D^(1/2) G, the Woodbury identity gives H^-1 v = (v - B^T (B B^T + m I)^-1 B v) / m.
    Cost n^2 p + n^3 instead of p^3: the choice where the RM has many parameters and was fitted to few samples. Its
    relative rounding error is of the order |H| / m times the machine precision.

    Parameters
    ----------
    jacobian : tensor (..., n, p)
        G: a row per sample, the gradient in phi of what the loss is applied to (r, or r_z - r_ref).
    curvature : tensor (..., n)
        D: weight of the sample times the loss's second derivative, 0 or larger.
    ridge, damping : float
        Their sum must be positive.

    Raises
    ------
    CurvatureError
        For a negative curvature or a sum that is not positive.

    Examples
    --------
    >>> solve = gram_solver(torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([3.0]), ridge=1.0)
    >>> solve(torch.tensor([[4.0, 2.0, 0.0]]))
    tensor([[1., 2., 0.]])
    """
    _check_damping(damping)
    m = ridge + damping
    if not m > 0:
        _refuse(f"ridge + damping = {m:g} leaves the Gauss-Newton Hessian singular")
    if bool((curvature < 0).any()):
        _refuse(f"a sample has negative curvature ({float(curvature.min()):g})")
    b = curvature.sqrt()[..., None] * jacobian
    inner = b @ b.mT
    inner = inner + m * torch.eye(inner.shape[-1], dtype=inner.dtype, device=inner.device)
    factor = torch.linalg.cholesky(inner)
    return lambda v: (v - torch.cholesky_solve(b @ v.mT, factor).mT @ b) / m


def cg_solver(product: Solve, damping: float = 0.0, tolerance: float = 1e-12, limit: int = 10_000) -> Solve:
    """v -> (H + damping I)^-1 v by SciPy's conjugate gradients, from Hessian-vector products alone; not batched.

    Parameters
    ----------
    product : callable
        v -> H v, both tensors (p,).
    damping : float
        Added to the diagonal.
    tolerance : float
        Of the residual, relative to v. The default suits float64; looser ones cost digits one for one.
    limit : int
        Most iterations for a right-hand side.

    Raises
    ------
    CurvatureError
        If a search direction has curvature 0 or less (conjugate gradients would walk off silently), or if the
        tolerance is not met within the limit.

    Examples
    --------
    >>> solve = cg_solver(lambda v: torch.tensor([2.0, 4.0], dtype=torch.float64) * v)
    >>> solve(torch.tensor([[2.0, 2.0]], dtype=torch.float64))
    tensor([[1.0000, 0.5000]], dtype=torch.float64)
    """
    _check_damping(damping)

    def solve(v: torch.Tensor) -> torch.Tensor:
        rows = v.reshape(-1, v.shape[-1])

        def times(x: np.ndarray) -> np.ndarray:
            v = torch.from_numpy(np.array(x, copy=True)).to(rows)
            y = product(v) + damping * v
            if bool(v.any()) and not float(v @ y) > 0:
                _refuse(f"the Hessian is not positive definite (a direction has curvature {float(v @ y):.1e})")
            return y.detach().cpu().numpy()

        p = rows.shape[-1]
        operator = LinearOperator((p, p), matvec=times, dtype=np.dtype(str(rows.dtype).removeprefix("torch.")))
        found = []
        for row in rows.detach().cpu().numpy():
            x, info = cg(operator, row, rtol=tolerance, atol=0.0, maxiter=limit)
            if info:
                _refuse(f"conjugate gradients missed the tolerance {tolerance:g} within {limit} iterations")
            found.append(x)
        return torch.from_numpy(np.stack(found)).to(rows).reshape(v.shape)

    return solve


def influence(loss_gradients: torch.Tensor, solve: Solve) -> torch.Tensor:
    """I(y) = -H^-1 grad_phi loss(y): how phi* moves per unit of weight on a sample. Shapes (..., n, p) both.

    Source: Gauthier et al. 2026, effective reward; Koh and Liang 2017.

    Examples
    --------
    >>> influence(torch.tensor([[2.0, 2.0]]), dense_solver(torch.eye(2) * 2))
    tensor([[-1., -1.]])
    """
    return -solve(loss_gradients)


def exact_penalty(mean_gradient: torch.Tensor, influences: torch.Tensor) -> torch.Tensor:
    """R(y) = <g_bar, I(y)>, the exact steering reward (Gauthier et al. 2026, FPO): shape (..., n).

    Parameters
    ----------
    mean_gradient : tensor (..., p)
        g_bar, the policy's mean of grad_phi r.
    influences : tensor (..., n, p)
        I(y), from `influence`.

    Examples
    --------
    >>> exact_penalty(torch.tensor([1.0, 0.0]), torch.tensor([[-2.0, 5.0], [3.0, 1.0]]))
    tensor([-2.,  3.])
    """
    return torch.einsum("...p,...np->...n", mean_gradient, influences)


def relaxed_penalty(rewards: torch.Tensor, utilities: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """R(y) = -(r - U) |grad_phi r|^2 for regression feedback (Gauthier et al. 2026, relaxed FPO).

    Shapes: rewards and utilities (..., n), gradients (..., n, p), result (..., n).

    Examples
    --------
    >>> relaxed_penalty(torch.tensor([3.0]), torch.tensor([1.0]), torch.tensor([[1.0, 2.0]]))
    tensor([-10.])
    """
    return -(rewards - utilities) * gradients.square().sum(-1)


def practical_penalty(gradients: torch.Tensor) -> torch.Tensor:
    """R(y) = -|grad_phi r|^2 for regression feedback (Gauthier et al. 2026, practical FPO): (..., n, p) to (..., n).

    Examples
    --------
    >>> practical_penalty(torch.tensor([[1.0, 2.0]]))
    tensor([-5.])
    """
    return -gradients.square().sum(-1)


def bt_loss_gradients(
    margins: torch.Tensor, preferences: torch.Tensor, gradients: torch.Tensor, references: torch.Tensor
) -> torch.Tensor:
    """grad_phi BCE(r_z - r_ref, p*) = (sigmoid(r_z - r_ref) - p*) (g_z - g_ref), for Bradley-Terry feedback.

    Shapes: margins r_z - r_ref and preferences p* (..., n), gradients g_z and references g_ref (..., n, p) or, for the
    latter, anything that broadcasts; result (..., n, p).

    Examples
    --------
    >>> bt_loss_gradients(torch.tensor([0.0]), torch.tensor([1.0]), torch.tensor([[3.0]]), torch.tensor([[1.0]]))
    tensor([[-1.]])
    """
    return (margins.sigmoid() - preferences)[..., None] * (gradients - references)


def bt_hessian(differences: torch.Tensor, probabilities: torch.Tensor, ridge: float) -> torch.Tensor:
    """H = (1/n) sum p (1 - p) d d^T + ridge I of the Bradley-Terry loss of a linear RM: shape (p, p).

    Parameters
    ----------
    differences : tensor (n, p)
        d = g_z - g_ref, one comparison a row.
    probabilities : tensor (n,)
        p = sigmoid(r_z - r_ref), the RM's own.
    ridge : float
        Weight of |phi|^2 / 2 in the loss.

    Examples
    --------
    >>> bt_hessian(torch.tensor([[2.0]]), torch.tensor([0.5]), ridge=1.0)
    tensor([[2.]])
    """
    weighted = differences * (probabilities * (1 - probabilities))[:, None]
    ridge_part = ridge * torch.eye(differences.shape[1], dtype=differences.dtype, device=differences.device)
    return weighted.T @ differences / len(differences) + ridge_part


def bt_relaxed_penalty(
    margins: torch.Tensor, preferences: torch.Tensor, gradients: torch.Tensor, references: torch.Tensor
) -> torch.Tensor:
    """R(z) = -(p_phi - p*) <g_z, g_z - g_ref>, p_phi = sigmoid(r_z - r_ref) (Gauthier et al. 2026, relaxed, pairwise).

    Shapes as in `bt_loss_gradients`; result (..., n).

    Examples
    --------
    >>> bt_relaxed_penalty(torch.tensor([0.0]), torch.tensor([0.0]), torch.tensor([[3.0]]), torch.tensor([[1.0]]))
    tensor([-3.])
    """
    return (margins.sigmoid() - preferences) * bt_practical_penalty(gradients, references)


def bt_practical_penalty(gradients: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """R(z) = -<g_z, g_z - g_ref> (Gauthier et al. 2026, practical, pairwise): (..., n, p) twice to (..., n).

    Examples
    --------
    >>> bt_practical_penalty(torch.tensor([[3.0]]), torch.tensor([[1.0]]))
    tensor([-6.])
    """
    return -(gradients * (gradients - references)).sum(-1)


def leverage(gradients: torch.Tensor, solve: Solve) -> torch.Tensor:
    """h(y) = g^T H^-1 g: the practical penalty in the metric of H^-1, with the sign turned: (..., n, p) to (..., n).

    For a regression with noise variance s^2 and H = sum_i g_i g_i^T + ridge I (the sum over labels, not their mean),
    s^2 h(y) is the variance of the fitted reward at y, up to the ridge.

    Examples
    --------
    >>> leverage(torch.tensor([[2.0, 0.0]]), dense_solver(torch.eye(2) * 4))
    tensor([1.])
    """
    return (gradients * solve(gradients)).sum(-1)


def effective_reward(rewards: torch.Tensor, mean_gradient: torch.Tensor, influences: torch.Tensor) -> torch.Tensor:
    """r~(y) = r(y) + <g_bar, I(y)>: what the leader in truth maximizes (Gauthier et al. 2026): shape (..., n).

    Examples
    --------
    >>> effective_reward(torch.tensor([1.0]), torch.tensor([1.0, 0.0]), torch.tensor([[-2.0, 5.0]]))
    tensor([-1.])
    """
    return rewards + exact_penalty(mean_gradient, influences)


def total_gradient(
    probabilities: torch.Tensor,
    scores: torch.Tensor,
    rewards: torch.Tensor,
    reward_gradients: torch.Tensor,
    loss_gradients: torch.Tensor,
    solve: Solve,
) -> tuple[torch.Tensor, torch.Tensor]:
    """grad F by the implicit route, in its two parts: the standard policy gradient and the steering term.

        standard = E_pi[ r grad log pi ]
        steering = -g_bar^T H^-1 E_pi[ grad_phi loss (grad log pi)^T ]

    One solve with g_bar serves all samples. Source: Gauthier et al. 2026, gradient decomposition.

    Parameters
    ----------
    probabilities : tensor (..., n)
        pi(y), or 1/n for n samples from pi.
    scores : tensor (..., n, q)
        grad_theta log pi(y).
    rewards : tensor (..., n)
        r(y) at the fitted RM.
    reward_gradients, loss_gradients : tensors (..., n, p)
        grad_phi r and grad_phi loss at the fitted RM.
    solve : callable
        v -> H^-1 v, one of `dense_solver`, `gram_solver`, `cg_solver`.

    Returns
    -------
    standard, steering : tensors (..., q)
        Their sum is grad F.

    Examples
    --------
    >>> half, one, loss = torch.tensor([0.5, 0.5]), torch.eye(2), torch.diag(torch.tensor([1.0, 0.0]))
    >>> total_gradient(half, one - half, torch.tensor([1.0, 0.0]), one, loss, dense_solver(one))
    (tensor([ 0.2500, -0.2500]), tensor([-0.1250,  0.1250]))
    """
    weighted = probabilities[..., None] * scores
    standard = torch.einsum("...n,...nq->...q", rewards, weighted)
    mean_gradient = torch.einsum("...n,...np->...p", probabilities, reward_gradients)
    adjoint = solve(mean_gradient[..., None, :])[..., 0, :]
    steering = -torch.einsum("...p,...np,...nq->...q", adjoint, loss_gradients, weighted)
    return standard, steering
