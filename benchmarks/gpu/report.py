"""The table as JSON and as Markdown, with the machine that it was measured on."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

LIBRARIES = ("torch", "transformers", "accelerate", "deepspeed", "peft", "trl", "liger-kernel", "triton")
DEVICE = "name,memory.total,driver_version,temperature.gpu,clocks.sm,clocks.max.sm,power.limit"


def machine() -> dict[str, Any]:
    """Device, temperature, clocks and versions."""
    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            versions[library] = None
    query = ["nvidia-smi", f"--query-gpu={DEVICE}", "--format=csv,noheader"]
    try:
        device = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        device = "no NVIDIA GPU"
    return {"device": device, "python": platform.python_version(), "versions": versions}


def shown(result: dict[str, Any]) -> str:
    """One result for people."""
    if "not run" in result:
        return f"not run: {result['not run']}"
    rate, peak = result["tokens_per_second"], result["peak_bytes"] / 2**30
    parts = [f"{rate:,.0f} per second, {1000 * result['step_seconds']:.1f} ms a step, {peak:.1f} GiB"]
    shares = result.get("shares_of_peak", {})
    for name, flops in result.get("flops_per_second", {}).items():
        share = f" = {shares[name]:.1%} of the peak" if name in shares else ""
        parts.append(f"{flops / 1e12:.0f} TFLOP/s{share} ({name})")
    if "sm_mhz" in result:
        parts.append(f"{result['sm_mhz']:.0f} MHz, {result['celsius']:.0f} C, {result['watts']:.0f} W")
    if "seconds_of_job" in result:
        first = result.get("seconds_to_first_step")
        parts.append(
            ("" if first is None else f"first step after {first:.0f} s, ") + f"{result['seconds_of_job']:.0f} s in all"
        )
    if result.get("note"):
        parts.append(result["note"])
    return "; ".join(parts)


def shown_peak(matmul: dict[str, Any]) -> str:
    """Of the matrix product."""
    if "flops" not in matmul:
        return "matrix product not measured"
    return f"matrix product {matmul['flops'] / 1e12:.0f} TFLOP/s, sustained {matmul['sustained_flops'] / 1e12:.0f}"


def write(report: dict[str, Any], out: Path) -> None:
    """OUT.json and OUT.md."""
    out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    peak = shown_peak(report["matmul"])
    versions = ", ".join(f"{name} {version or '-'}" for name, version in report["machine"]["versions"].items())
    afterwards = report["machine"].get("device afterwards")
    lines = [f"{report['machine']['device']}; {peak}; {versions}", ""]
    lines += [f"Afterwards: {afterwards}", ""] if afterwards else []
    lines += ["| row | side | result | verdict |", "|---|---|---|---|"]
    for row in report["rows"]:
        for side, result in row["sides"].items():
            lines.append(f"| {row['title']} | {side} | {shown(result)} | {result.get('verdict', '')} |")
    out.with_suffix(".md").write_text("\n".join(lines) + "\n")
