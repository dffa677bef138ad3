"""What a run cost: processor or GPU hours, throughput, the share of the GPUs' peak that was used, energy, memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from finetune.tasks import CARDS
from finetune.tracking.series import Series
from finetune.units import format_count, format_seconds

Curves = Mapping[tuple[str, str], Series]
NOT_MEASURED = "not measured"

# Dense half-precision FLOP/s by a part of the name, as NVIDIA's data sheets give them; the first that fits.
PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "V100": 125e12,
    "T4": 65e12,
}


def costs(facts: Mapping[str, Any], curves: Curves, seconds: float | None) -> list[tuple[str, str]]:
    """(what, how much); what nothing measured says so."""
    details, rows = facts.get("facts", {}), []
    ranks, unit = details.get("ranks"), details.get("unit", "unit")
    if seconds and ranks:
        device = "GPU" if _on_gpu(details) else "rank"
        hours = ranks * seconds / 3600
        shown = f"{hours:,.2f}" if hours >= 0.1 else f"{hours:.2g}"
        rows.append((f"{device} hours", f"{shown} ({ranks} × {format_seconds(seconds)})"))
    rate = curves.get(("train", "units_per_second"))
    if rate is not None:
        median = float(np.median(rate.values))
        rows.append((f"{unit}s per second", f"{format_count(median)} ({format_count(median / (ranks or 1))} per rank)"))
    padding = curves.get(("train", "padding_share"))
    if padding is not None:
        rows.append(("padding", f"{float(np.mean(padding.values)):.1%} of what was computed"))
    idle = _idle(curves)
    if idle is not None:
        rows.append(("not computing", f"{idle:.1%} of a step: communication, waiting for ranks, for data"))
    rows.append(("share of the GPUs' peak (MFU)", _utilization(facts, curves)))
    rows.append(("energy of the GPUs", _energy(details, curves)))
    return rows + _memory(curves)


def _on_gpu(details: Mapping[str, Any]) -> bool:
    return str(details.get("device", "")).startswith("cuda")


def _utilization(facts: Mapping[str, Any], curves: Curves) -> str:
    """Model FLOPs utilization (Chowdhery and others 2022) without the operations of attention, or why it is not known.

    A token takes 2 operations per weight in the forward pass, 2 for the gradient of the inputs, and 2 for that of the weight
    where it is trained.
    """
    details = facts.get("facts", {})
    if not _on_gpu(details):
        return f"{NOT_MEASURED}: no GPU"
    gpus = (facts.get("machine") or {}).get("gpus") or [""]
    peak = next((value for name, value in PEAKS.items() if name in gpus[0]), None)
    card, rate = CARDS.get(str(facts.get("task"))), curves.get(("train", "positions_per_second"))
    if rate is None or card is None or card.batches.decodes:
        return f"{NOT_MEASURED}: the operations per {details.get('unit', 'unit')} are not known"
    if peak is None or details.get("precision") not in ("bf16", "fp16"):
        return f"{NOT_MEASURED}: no peak is known for {gpus[0] or 'this GPU'} in {details.get('precision')}"
    whole = float(details.get("parameters") or 0)
    trained = float(details.get("trainable_parameters") or whole)
    achieved = (4 * whole + 2 * trained) * float(np.median(rate.values)) / max(1, int(details.get("ranks") or 1))
    return f"{achieved / peak:.1%} of {peak / 1e12:.0f} TFLOP/s ({achieved / 1e12:.0f} per GPU, without attention)"


def _energy(details: Mapping[str, Any], curves: Curves) -> str:
    """Over all sessions: the count begins anew with each."""
    joules = curves.get(("train", "energy_joules"))
    if joules is None:
        return NOT_MEASURED + ("" if _on_gpu(details) else ": no GPU")
    values = joules.values
    ends = np.append(values[1:] < values[:-1], True)  # a smaller value begins a session
    used = float(values[ends].sum())
    steps = max(1.0, float(joules.steps[-1]))
    unit = f"{used / 3.6e6:.2f} kWh" if used >= 3.6e5 else f"{used / 3600:.1f} Wh"
    return f"{unit} on the machine of rank 0, {used / steps:,.0f} J per step"


def _memory(curves: Curves) -> list[tuple[str, str]]:
    """The most that ranks used; of rank 0 alone where no other is recorded."""
    peaks = {
        name: float(series.values.max()) / 2**30
        for (split, name), series in curves.items()
        if split == "train" and name.startswith("memory_bytes")
    }
    own = peaks.get("memory_bytes")
    others = {name.removeprefix("memory_bytes_"): peak for name, peak in peaks.items() if name != "memory_bytes"}
    rows = [] if own is None else [("memory of rank 0", f"{own:.2f} GiB at most")]
    names = {"max": "memory of the largest rank", "min": "memory of the smallest rank"}
    return rows + [
        (names.get(name, f"memory of {name.replace('_', ' ')}"), f"{peak:.2f} GiB at most")
        for name, peak in sorted(others.items())
        if name != "rank_0"
    ]


def _idle(curves: Curves) -> float | None:
    whole, busy = curves.get(("train", "step_seconds")), curves.get(("train", "compute_seconds"))
    if whole is None or busy is None:
        return None
    _, one, other = np.intersect1d(busy.steps, whole.steps, return_indices=True)
    total = float(whole.values[other].sum())
    return 1 - float(busy.values[one].sum()) / total if total else None
