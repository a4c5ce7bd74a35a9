"""Starts: where tokens are drawn, and what cannot be drawn. Seeded."""

import math

import pytest
import torch

from osmose.dynamics.starts import box, cap, equiangular, hemisphere, seeded, uniform


@pytest.mark.parametrize("d", [2, 3, 7])
def test_tokens_are_where_they_should_be(d):
    for x in (uniform(4, 50, d, generator=seeded(0)), hemisphere(4, 50, d, generator=seeded(0))):
        torch.testing.assert_close(x.norm(dim=-1), torch.ones(4, 50, dtype=torch.float64))
    assert float(hemisphere(50, d, generator=seeded(1))[..., -1].min()) >= 0
    near = cap(50, d, angle=0.3, generator=seeded(2))
    assert float(near[..., -1].min()) >= math.cos(0.3)
    assert float(near[..., -1].min()) < math.cos(0.2), "the whole cap is used"
    assert float(box(50, d, width=2.0, generator=seeded(3)).abs().max()) <= 2.0


def test_equal_inner_products():
    for n, d, rho in ((4, 3, -1 / 3), (5, 5, 0.0), (3, 7, 0.9)):
        x = equiangular(n, d, rho)
        off = (x @ x.mT)[~torch.eye(n, dtype=torch.bool)]
        torch.testing.assert_close(off, torch.full_like(off, rho), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: uniform(3, generator=seeded(0)), r"shape is \(3,\)"),
        (lambda: cap(5, 1, angle=0.1, generator=seeded(0)), "d of 2 or more"),
        (lambda: cap(5, 3, angle=4.0, generator=seeded(0)), "at most pi"),
        (lambda: box(5, 3, width=math.nan, generator=seeded(0)), "width is nan"),
        (lambda: equiangular(4, 2, 0.0), "d is 2; expected at least 4"),
        (lambda: equiangular(4, 4, -0.5), "expected -0.333333 to 1"),
    ],
)
def test_what_cannot_be_drawn_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
