"""What `osmose heads` and `osmose adaptivity` find out about the attentions of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from osmose.diagnostics import COMPONENTS, StructureAnova
from osmose.inspection import Replaced, jacobian_gaps, replacement_test, study
from osmose.tasks.subject import Subject

# ---- osmose heads -----------------------------------------------------------------------------------


def heads_of(
    subject: Subject,
    *,
    null: int = 99,
    replace: tuple[str, ...] = (),
    seed: int = 0,
    told: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, Any], dict[str, StructureAnova]]:
    """A row for each head: shares, offsets, p-value, and with `replace` the change of the score.

    `null` is the number of permutations, 0: none. `told` hears how many replacements of how many are done.
    """
    found = study(subject.model, subject.inputs, classes=subject.classes)
    rows: list[dict[str, Any]] = []
    for name, anova in found.items():
        shares, about = anova.shares(), anova.heads()
        generator = torch.Generator().manual_seed(seed)
        p = anova.permutation_p(null, generator=generator).tolist() if null else None
        for head in range(len(shares.energy)):
            row: dict[str, Any] = {"layer": name, "head": head}
            row |= {part: float(shares[part][head]) for part in COMPONENTS}
            row |= {
                "outside": float(shares.outside[head]),
                "shift_score": float(shares.shift_score[head]),
                "chance": float(shares.chance[head]),
                "top_offset": about.top_offset[head],
                "top_mass": float(about.top_mass[head]),
                "effective_offsets": float(about.effective_offsets[head]),
                "first_source": float(about.first_source[head]),
                "sink": about.sink[head],
                "sink_share": float(about.sink_share[head]),
                "stable_rank": float(about.stable_rank[head]),
                "dominant": shares.dominant[head],
            }
            rows.append(row | ({} if p is None else {"p": p[head]}))
    result: dict[str, Any] = {**subject.about, "permutations": null, "heads": rows}
    if not replace:
        return result, found
    _check_lengths(subject)
    groups: dict[str, list[tuple[str, int]]] = {"all heads": [(row["layer"], row["head"]) for row in rows]}
    for part in COMPONENTS:
        members = [(row["layer"], row["head"]) for row in rows if row["dominant"] == part]
        if 1 < len(members) < len(rows):
            groups[part] = members
    alone = [[member] for member in groups["all heads"]]
    tests = [*alone, *groups.values()]
    done = 0

    def count(_: Replaced) -> None:
        nonlocal done
        done += 1
        if told is not None:
            told(done, len(tests) * len(replace))

    whole, replaced = replacement_test(
        subject.model, found, subject.score, kinds=replace, groups=tests, told=count
    )
    changes = {(one.kind, one.heads): one.change for one in replaced}
    for row in rows:
        row["change"] = {kind: changes[kind, ((row["layer"], row["head"]),)] for kind in replace}
    result["score"] = {"valid_" + subject.measure.key: whole}
    result["together"] = [
        {
            "heads": name,
            "number": len(members),
            "change": {kind: changes[kind, tuple(members)] for kind in replace},
        }
        for name, members in groups.items()
    ]
    return result, found


# ---- osmose adaptivity ------------------------------------------------------------------------------


def adaptivity_of(subject: Subject, *, samples: int = 4, probes: int = 32, seed: int = 0) -> dict[str, Any]:
    """A row for each layer: shares by energy, |J - Phi| / |J|, and the change of the score when A is frozen at its mean."""
    _check_lengths(subject)
    found = study(subject.model, subject.inputs, classes=subject.classes)
    gaps = jacobian_gaps(
        subject.model, *(part[:samples] for part in subject.inputs[0]), probes=probes, seed=seed
    )
    layers = {name: [(name, head) for head in range(len(a.shares().energy))] for name, a in found.items()}
    groups = [*layers.values(), [head for members in layers.values() for head in members]]
    whole, frozen = replacement_test(subject.model, found, subject.score, kinds=("mean",), groups=groups)
    rows = []
    for (name, anova), one in zip(found.items(), frozen, strict=False):
        together = anova.shares().together.tolist()
        row: dict[str, Any] = {"layer": name, **dict(zip(COMPONENTS, together, strict=True))}
        rows.append(
            row
            | {
                "depends_on_input": together[3] + together[4],
                "jacobian_gap": gaps.get(name),
                "frozen": one.change,
            }
        )
    score = {"valid_" + subject.measure.key: whole}
    taken = min(samples, len(subject.inputs[0][0]))
    return {
        **subject.about,
        "samples": taken,
        "probes": probes,
        "score": score,
        "layers": rows,
        "all_frozen": frozen[-1].change,
    }


def _check_lengths(subject: Subject) -> None:
    if "length" not in subject.about and not subject.grids:
        raise ValueError(
            "these sequences have different lengths, and a mean matrix has one; give --length, to which all are cut that are "
            "as long"
        )
