"""SA and USA straight from their formulas, for tests of what is known about them."""

import numpy as np
import torch
from scipy.integrate import solve_ivp

F64 = torch.float64
MODELS = ("SA", "USA")


def sphere(n, d, seed=0):
    x = torch.randn(n, d, dtype=F64, generator=torch.Generator().manual_seed(seed))
    return x / x.norm(dim=-1, keepdim=True)


def field(x, beta, model="SA", mass=None):
    """SA or USA, Q = K = V = I, straight from the formula; numpy ``(n, d)``."""
    m = np.ones(len(x)) if mass is None else mass
    w = np.exp(beta * (x @ x.T)) * m
    w = w / (w.sum(-1, keepdims=True) if model == "SA" else m.sum())
    a = w @ x
    return a - (a * x).sum(-1, keepdims=True) * x


def flow(x, beta, t, model="SA", mass=None):
    """States at rising times, by an integrator."""
    shape = x.shape
    solved = solve_ivp(
        lambda _, y: field(y.reshape(shape), beta, model, mass).ravel(),
        (0, max(t)), x.ravel(), t_eval=t, rtol=1e-10, atol=1e-13, method="LSODA",
    )  # fmt: skip
    return solved.y.T.reshape(-1, *shape)


def circle(theta):
    theta = np.asarray(theta, dtype=float)
    return np.stack([np.cos(theta), np.sin(theta)], -1)
