"""What the forward and backward of the simple kernel share: the plan, the buffers, and how rows are read and written."""

from __future__ import annotations

import torch
from torch import Tensor

from ..blocks import Block, Group, Workspace, block_rows, plan
from .sweeps import Moments, add_moments, no_direction, unit_scale


class Call:
    """The arguments of one call, without the head dimension where there is one head.

    Shapes as in linear.py; ``q_rows (H, N)`` and ``k_rows (H, M)`` are the scales of the rows, written by the forward:
    by :meth:`spread_scales` where sets have one scale, else block by block.
    """

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        q_ptr: Tensor,
        k_ptr: Tensor,
        mass: Tensor | None,
        present: Tensor | None,
        q_rows: Tensor,
        k_rows: Tensor,
    ):
        self.heads, self.shape = q.shape[0], (q.shape[-1] + 1, v.shape[-1] + 1)
        self.lead = (self.heads,) if self.heads > 1 else ()
        self.dtype = q_rows.dtype
        self.q, self.k, self.v = self.flat(q), self.flat(k), self.flat(v)
        self.q_rows, self.k_rows = self.flat(q_rows), self.flat(k_rows)
        self.unit_q = self.unit_k = False
        self.mass = None if mass is None else mass.to(self.dtype)
        self.absent = None if mass is None or bool((mass > 0).all()) else mass <= 0
        self.present = present
        self.hidden = None if present is None or bool(present.all()) else ~present
        rows = block_rows(self.heads, max(self.shape), self.dtype.itemsize, q.device.type)
        rows = min(rows, max(q.shape[1], k.shape[1], 1))
        q_bounds, k_bounds = tuple(q_ptr.tolist()), tuple(k_ptr.tolist())
        self.groups = plan(q_bounds, k_bounds, rows)
        self.q_sets = self.k_sets = None
        if len(q_bounds) > 2:
            sets = torch.arange(len(q_bounds) - 1, device=q.device)
            self.q_sets = sets.repeat_interleave(q_ptr.diff().to(q.device), output_size=q.shape[1])
            self.k_sets = sets.repeat_interleave(k_ptr.diff().to(q.device), output_size=k.shape[1])
        self.total = self._totals(k_ptr)
        self.work = Workspace(q, self.lead, rows, self.dtype)

    # ---- shapes -------------------------------------------------------------------------------------

    def flat(self, x: Tensor) -> Tensor:
        """``x`` without its head dimension if there is one head."""
        return x.squeeze(0) if self.heads == 1 else x

    def sets_first(self, moments: Tensor) -> Tensor:
        """``(H, S, ...)`` to ``(S, H, ...)``, or ``(S, ...)`` for one head."""
        return moments.squeeze(0) if self.heads == 1 else moments.transpose(0, 1)

    # ---- masses and scales --------------------------------------------------------------------------

    def spread_scales(self, q_scale: Tensor | None, k_scale: Tensor | None) -> None:
        """Fill the scales of rows from those of sets; where None, the blocks that are read fill them."""
        self.unit_q, self.unit_k = q_scale is None, k_scale is None
        sides = ((q_scale, self.q_rows, self.q_sets), (k_scale, self.k_rows, self.k_sets))
        for scale, rows, sets in sides:
            if scale is not None:
                s = self.flat(scale.to(self.dtype))
                s = s.masked_fill(s == 0, 1.01 * no_direction(self.dtype))
                rows.copy_(s if sets is None else s[..., sets])

    def _totals(self, k_ptr: Tensor) -> Tensor:
        """Mass of the sources of every target ``(N,)``, or ``(1,)`` for one set."""
        if self.mass is None:
            total = k_ptr.diff().to(self.q.device, self.dtype)
        elif self.k_sets is None:
            return self.mass.sum(0, keepdim=True)
        else:
            total = self.mass.new_zeros(k_ptr.shape[0] - 1).index_add_(0, self.k_sets, self.mass)
        return total if self.q_sets is None else total[self.q_sets]

    def totals(self, block: Block) -> Tensor:
        return self.total if self.q_sets is None else self.total[block.start : block.stop]

    def present_rows(self, block: Block) -> Tensor | None:
        return None if self.present is None else self.present[block.start : block.stop]

    # ---- rows of a block ------------------------------------------------------------------------------

    def target(self, block: Block) -> tuple[Tensor, Tensor]:
        """Queries of a block and their scales."""
        x, scale = (
            self.load("targets", self.q, block, self.hidden),
            self.q_rows[..., block.start : block.stop],
        )
        if self.unit_q:
            unit_scale(x, scale)
        return x, scale

    def source(self, block: Block) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Keys, values and masses of a block, and the scales of its keys."""
        x, y = (self.load(f"sources {i}", z, block, self.absent) for i, z in enumerate((self.k, self.v)))
        m = None if self.mass is None else self.mass[block.start : block.stop]
        scale = self.k_rows[..., block.start : block.stop]
        if self.unit_k:
            unit_scale(x, scale)
        return x, y, m, scale

    def load(self, name: str, x: Tensor, block: Block, drop: Tensor | None = None) -> Tensor:
        """Rows of a block in the accumulation type, those to drop set to zero."""
        rows = x[..., block.start : block.stop, :]
        if drop is None and rows.dtype == self.dtype:
            return rows
        rows = self.work.get(name, *rows.shape[-2:]).copy_(rows)
        return rows if drop is None else rows.masked_fill_(drop[block.start : block.stop].unsqueeze(-1), 0.0)

    def slot(self, name: str, x: Tensor, block: Block) -> Tensor:
        """Where to compute rows of a result: in place, or in a buffer if the result is in half precision."""
        rows = x[..., block.start : block.stop, :]
        return rows if rows.dtype == self.dtype else self.work.get(name, *rows.shape[-2:])

    def store(self, rows: Tensor, x: Tensor, block: Block) -> None:
        if x.dtype != self.dtype:
            x[..., block.start : block.stop, :] = rows

    # ---- moments --------------------------------------------------------------------------------------

    def zero_moments(self, group: Group) -> Moments:
        shape = (group.last - group.first, *self.lead, *self.shape)
        return Moments(self.q.new_zeros(shape, dtype=self.dtype))

    def new_moments(self, group: Group, kept: Tensor) -> Moments:
        """Moments of the sets of a group from their sources, written to ``kept`` if that has room."""
        shape = (group.last - group.first, *self.lead, *self.shape)
        room = kept[group.first : group.last] if kept.shape[0] else self.q.new_empty(shape, dtype=self.dtype)
        whole = len(group.sources) == 1
        if not whole or len(group.sources[0].sets) < len(room):
            room.zero_()
        moments = Moments(room)
        for block in group.sources:
            x, y, m, scale = self.source(block)
            add_moments(moments, block, x, y, scale, m, self.work, whole)
        return moments

    def known_moments(self, group: Group, kept: Tensor) -> Moments:
        """Moments that the forward kept, or the same again."""
        return Moments(kept[group.first : group.last]) if kept.shape[0] else self.new_moments(group, kept)

    def mass_gradient(
        self, d_moments: Moments, block: Block, x: Tensor, y: Tensor, scale: Tensor, dx: Tensor
    ) -> Tensor:
        """``dL/dm_j = [k~_j, 1] dmoments [v_j, 1]^T`` of a block, summed over heads; 0 for absent sources."""
        total = (x * dx).sum(-1) * scale
        for s, rows, values in zip(
            block.sets, total.split(block.sizes, -1), y.split(block.sizes, -2), strict=True
        ):
            last = d_moments.last[s]
            rows += (values @ last[..., :-1].mT).squeeze(-1) + last[..., -1]
        total = total.reshape(-1, total.shape[-1]).sum(0)
        return (
            total if self.absent is None else total.masked_fill_(self.absent[block.start : block.stop], 0.0)
        )
