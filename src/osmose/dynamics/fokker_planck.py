r"""The mean field of noisy USA: the Fokker-Planck equation on the sphere, for densities that are symmetric about an axis.

The law of infinitely many tokens under ``dX = proj(USA) dt + sqrt(2/kappa) dW`` solves

.. math:: \partial_t \mu = \frac{1}{\kappa} \Delta \mu - \operatorname{div}(\mu v), \qquad v = \frac{1}{\beta} \nabla (K * \mu),
   \quad K(x, y) = e^{\beta \langle x, y \rangle}.

With u the cosine of the angle to the axis, a density is ``f(u) = 1 + sum_l c_l P_l(u)`` against the uniform measure, P_l the
orthonormal polynomials of the weight ``(1 - u^2)^{(d-3)/2}``, so that ``c_l`` is the mean of P_l. Then

.. math:: c_l' = -\frac{l (l + d - 2)}{\kappa} c_l + \frac{1}{\beta} \int (1 - u^2) P_l'(u) \phi'(u) f(u) \, dw(u),
   \qquad \phi = \sum_l a_l c_l P_l,

with the eigenvalues ``a_l = int e^{beta u} P_l dw / P_l(1)`` of the kernel (Funk and Hecke). Every integral is a Gauss rule that is exact
for its polynomial; nothing here uses Bessel functions, so it is a check of what is derived with them.

Shapes: ``L`` modes, ``N`` nodes, ``K`` times; coefficients ``c (L,)`` of the modes 1 to L, numpy float64.

Source: 2606.05140 for the equation; the discretisation is derived here. d = 2 is a density on the circle that is even.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

RESTED = 1e-11  # velocity of coefficients at which a state is stationary


class FokkerPlanck:
    """Axially symmetric densities on S^{d-1}, by their first modes.

    Args:
        beta: inverse temperature, at most 300 in size.
        d: dimension of the space, at least 2.
        modes: L; a cluster of width s needs a few times 1/s.

    Raises:
        ValueError: parameters out of range.

    >>> mean_field = FokkerPlanck(1.0, 2)
    >>> rates = np.diag(mean_field.jacobian(np.zeros(mean_field.modes), kappa=4.0))
    >>> bool(abs(rates[0] - 0.3151591) < 1e-7)  # I_1(1) - 1/4
    True

    Cost: a velocity is a few products with ``(N, L)``, N = 2 L; a Jacobian ``N L^2``.
    """

    def __init__(self, beta: float, d: int, modes: int = 40):
        from scipy.special import eval_jacobi, roots_jacobi

        if not abs(beta) <= 300 or int(d) != d or d < 2 or int(modes) != modes or modes < 2:
            raise ValueError(
                f"FokkerPlanck: beta is {beta}, d {d}, modes {modes}; expected |beta| <= 300, whole d and modes of at least 2."
            )
        self.beta, self.d, self.modes = float(beta), int(d), int(modes)
        a = (d - 3) / 2
        l = np.arange(1, modes + 1)
        # nodes also have to resolve the kernel
        u, w = roots_jacobi(2 * modes + int(abs(beta)) + 10, a, a)
        self.nodes, self.weights = u, w / w.sum()
        values = np.stack([eval_jacobi(k, a, a, u) for k in l], -1)
        slopes = np.stack([(k + 2 * a + 1) / 2 * eval_jacobi(k - 1, a + 1, a + 1, u) for k in l], -1)
        norm = np.sqrt(self.weights @ values**2)
        self.values, self.slopes = values / norm, slopes / norm
        at_pole = np.array([eval_jacobi(k, a, a, 1.0) for k in l]) / norm
        # (e^{beta u} - 1) / beta: the same eigenvalues but for l = 0, over beta, and good at beta = 0
        kernel = np.expm1(beta * u) / beta if beta else u
        self.eigenvalues = (self.weights * kernel) @ self.values / at_pole
        self.decay = l * (l + d - 2.0)
        self._push = self.weights * (1 - u**2)

    # ---- motion -----------------------------------------------------------------------------------

    def velocity(self, c: np.ndarray, kappa: float) -> np.ndarray:
        """``dc/dt``, ``(L,)``."""
        f = 1 + self.values @ c
        force = self.slopes @ (self.eigenvalues * c)
        return -self.decay / kappa * c + self.slopes.T @ (self._push * force * f)

    def jacobian(self, c: np.ndarray, kappa: float) -> np.ndarray:
        """The derivative of :meth:`velocity` in c, ``(L, L)``; at c = 0 its diagonal are the growth rates."""
        f = 1 + self.values @ c
        force = self.slopes @ (self.eigenvalues * c)
        change = f[:, None] * self.slopes * self.eigenvalues + force[:, None] * self.values
        return np.diag(-self.decay / kappa) + self.slopes.T @ (self._push[:, None] * change)

    def evolve(self, c: np.ndarray, kappa: float, times: Sequence[float] | np.ndarray) -> np.ndarray:
        """States at rising times from c at the first, ``(K, L)``; relative error near 1e-9."""
        from scipy.integrate import solve_ivp

        t = np.asarray(times, dtype=float)
        solved = solve_ivp(
            lambda _, y: self.velocity(y, kappa),
            (t[0], t[-1]),
            c,
            method="LSODA",
            jac=lambda _, y: self.jacobian(y, kappa),
            t_eval=t,
            rtol=1e-10,
            atol=1e-12 * float(np.abs(c).max()) + 1e-300,
        )
        if not solved.success:
            raise RuntimeError(f"FokkerPlanck.evolve: the solver stopped: {solved.message}")
        return solved.y.T

    def settle(self, c: np.ndarray, kappa: float, until: float = 1e6) -> tuple[np.ndarray, float]:
        """The state that the flow comes to from c, and when: no coefficient is faster than 1e-11, or at ``until``.

        Errors on the way do not add up to a state of another kind: a stationary state that attracts is met exactly.
        """
        from scipy.integrate import solve_ivp

        def rested(_: float, y: np.ndarray) -> float:
            return float(np.log(np.abs(self.velocity(y, kappa)).max() / RESTED + 1e-300))

        rested.terminal = True  # type: ignore[attr-defined]
        rested.direction = -1  # type: ignore[attr-defined]
        solved = solve_ivp(
            lambda _, y: self.velocity(y, kappa),
            (0.0, until),
            c,
            method="LSODA",
            jac=lambda _, y: self.jacobian(y, kappa),
            events=rested,
            rtol=1e-9,
            atol=1e-13,
        )
        if not solved.success:
            raise RuntimeError(f"FokkerPlanck.settle: the solver stopped: {solved.message}")
        return solved.y[:, -1], float(solved.t[-1])

    # ---- states -----------------------------------------------------------------------------------

    def order_parameter(self, c: np.ndarray) -> np.ndarray:
        """The mean of u, the length of the mean token: ``c_1 / sqrt d``, for states ``(..., L)``."""
        return np.asarray(c)[..., 0] / math.sqrt(self.d)

    def density(self, c: np.ndarray) -> np.ndarray:
        """``f`` at the nodes, ``(N,)``."""
        return 1 + self.values @ c

    def peaked(self, concentration: float) -> np.ndarray:
        """The coefficients of ``f ~ e^{s u}`` (von Mises and Fisher)."""
        f = np.exp(concentration * (self.nodes - 1))
        return (self.weights * f) @ self.values / float(self.weights @ f)

    def tilted(self, order: float) -> np.ndarray:
        """The density ``1 + d r u`` of order parameter r."""
        c = np.zeros(self.modes)
        c[0] = math.sqrt(self.d) * order
        return c

    def off_gibbs(self, c: np.ndarray, kappa: float) -> float:
        """How far a state is from ``f ~ e^{kappa phi / beta}``, which every stationary one solves: the largest difference, over max f.

        The other formulation of being stationary: a critical point of the free energy.
        """
        log = kappa * (self.values @ (self.eigenvalues * c))
        gibbs = np.exp(log - log.max())
        gibbs /= float(self.weights @ gibbs)
        f = self.density(c)
        return float(np.abs(f - gibbs).max() / np.abs(f).max())

    def branch(
        self, orders: Sequence[float] | np.ndarray, near: tuple[float, np.ndarray] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Stationary states with given order parameters r > 0, whether they attract or not: kappa ``(k,)``, states ``(k, L)``.

        By Newton's method in ``(1/kappa, c_2, ..., c_L)``, each from the one before: give them in rising order from a small
        one, or from ``near``, a kappa and its state. kappa(r) tends to the critical kappa for r -> 0, and turns where states
        are lost.

        Raises:
            RuntimeError: Newton does not converge: take smaller steps of r, or more modes.
        """
        out, kept = [], []
        c = np.zeros(self.modes)
        inverse = float(self.jacobian(c, math.inf)[0, 0] / self.decay[0])
        if near is not None:
            inverse, c = 1 / near[0], near[1]
        for order in np.asarray(orders, dtype=float):
            c = c.copy()
            c[0] = math.sqrt(self.d) * order
            for _ in range(40):
                off = self.velocity(c, 1 / inverse)
                change = self.jacobian(c, 1 / inverse)
                change[:, 0] = -self.decay * c  # in place of the derivative in c_1, which is given
                step = np.linalg.solve(change, -off)
                inverse += step[0]
                c[1:] += step[1:]
                if np.abs(step).max() < 1e-13:
                    break
            else:
                raise RuntimeError(
                    f"FokkerPlanck.branch: no stationary state found at order parameter {order:g} (beta {self.beta:g}, "
                    f"d {self.d}); take smaller steps of r, or more than {self.modes} modes."
                )
            out.append(1 / inverse)
            kept.append(c)
        return np.array(out), np.stack(kept)
