"""Claims of the papers, tested on the rows of finished runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from benchmarks.common.results import estimate
from benchmarks.report.rows import Row, group, paired, paper, where
from benchmarks.report.tables import LENGTHS, grey

__all__ = ["VARIANTS", "of_drlih", "of_mch", "verdict"]

VARIANTS = ("drlih", "drlih-norec", "drlih-gru", "drlih-lstm", "drlih-paper", "drlih-released")
OTHERS = ("hashnet", "noseq", "ng", "orthohash")
MEASURES = {"map": "mAP", "recall_radius0": "recall within radius 0", "precision_radius0": "precision within radius 0"}


def of_drlih(rows: Sequence[Row]) -> dict[str, str]:
    """Verdicts by claim for the rows of one dataset: DRLIH over other methods, supervision, more bits."""
    dataset, methods, claims = rows[0]["dataset"], group(rows, "method"), {}
    for one, other in [*((variant, other) for variant in VARIANTS for other in OTHERS), ("sdh", "itq")]:
        gains = paired(methods.get(one, []), methods.get(other, []), "map")
        names = [
            {"table": "II" if m in ("noseq", "ng") else "I", "dataset": dataset, "method": m} for m in (one, other)
        ]
        claims[f"{one} over {other}"] = verdict(gains, _printed("I", *names))
    short, long = _ends(rows)
    for one, own in (("drlih", where(long, method="drlih")), ("all methods", long)):
        claims[f"{one}: longest codes over shortest"] = verdict(paired(own, short, "map", "method"))
    return claims


def of_mch(rows: Sequence[Row]) -> dict[str, str]:
    """Verdicts by claim for the rows of one dataset, sigma and xi: MCH over its bases, more bits."""
    own, single, claims = where(rows, method="mch"), where(rows, method="single"), {}
    for measure, name in MEASURES.items():
        gains = {
            base: paired(several, where(single, base=base), measure) for base, several in group(own, "base").items()
        }
        claims[f"mch over its base, all bases: {name}"] = verdict([gain for each in gains.values() for gain in each])
        for base, gain in gains.items():
            names = [
                {"table": "2", "dataset": rows[0]["dataset"], "method": m, "base": base} for m in ("mch", "single")
            ]
            claims[f"mch-{base} over {base}: {name}"] = verdict(
                gain, _printed("2", *names) if measure == "map" else None
            )
    claims["mch, all bases: longest codes over shortest, mAP"] = verdict(paired(*_ends(own)[::-1], "map", "base"))
    return claims


def verdict(gains: Sequence[ArrayLike], printed: float | None = None) -> str:
    """A verdict on whether differences are above 0, with their mean and interval, and the paper's mean.

    Args:
        gains: one array of differences for each stratum; the verdict of none is empty.
        printed: the mean difference in the paper.
    """
    if not gains:
        return ""
    found = estimate(gains)
    word = "holds" if found.low > 0 else "does not" if found.high < 0 else "undecided"
    interval = "" if np.isnan(found.low) else f" [{_signed(found.low)}, {_signed(found.high)}]"
    return f"{word} {_signed(found.mean)}{interval} {grey(_signed(printed) if printed is not None else None)}".rstrip()


def _ends(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The rows of the shortest and of the longest codes; none where there is one length."""
    lengths = sorted({row["bits"] for row in rows})
    return (where(rows, bits=lengths[0]), where(rows, bits=lengths[-1])) if len(lengths) > 1 else ([], [])


def _printed(table: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> float | None:
    """The mean difference of the numbers printed in the papers; None where there are none."""
    pairs = [(paper(bits=bits, **one), paper(bits=bits, **other)) for bits in LENGTHS[table]]
    differences = [float(a) - float(b) for a, b in pairs if a and b]
    return float(np.mean(differences)) if differences else None


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("0.", ".", 1)
