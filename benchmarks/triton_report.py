"""Registers, shared memory, spills and memory traffic of medseq's Triton kernels, without a GPU.

Run: `python -m benchmarks.triton_report` (about three minutes). Writes benchmarks/results/triton_report.{json,md}.

Every configuration is compiled for sm_80 and sm_90a. Traffic is counted by running the kernels in Triton's interpreter:
`moved` is every element that a load or store touches, re-read halos and states included; `once` counts an address once
per program. Exits with 1 where a kernel spills or takes more than 128 registers.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.triton_cases import CASES, Case
from benchmarks.triton_compile import ARCHITECTURES, compiled, recorded
from benchmarks.triton_worker import Interpreter

MOST_REGISTERS = 128
RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]


def build_rows(cases: list[Case], architectures: list[str]) -> list[Row]:
    """A row for every kernel of every case and architecture."""
    rows = []
    for case in cases:
        seen = set()
        for function, args in case.calls().items():
            for launch in recorded(case.operator, function, args, dict(case.settings)):
                if launch.name in seen:  # backward may begin with forward's kernels
                    continue
                seen.add(launch.name)
                for architecture in architectures:
                    build = compiled(launch, architecture)
                    row = {"operator": case.operator, "kernel": launch.name, "case": case.label}
                    rows.append(row | {"architecture": architecture, "warps": launch.warps} | build._asdict())
                    print(row_text(rows[-1]), flush=True)
    return rows


def row_text(row: Row) -> str:
    """One line of the printed table."""
    figures = f"{row['registers']:4d} registers {row['spilled']:4d} B spilled {row['shared']:6d} B shared"
    return f"{row['operator']:22s} {row['kernel']:18s} {row['case']:36s} {row['architecture']:7s} {figures}"


def traffic_rows(cases: list[Case]) -> list[Row]:
    """Bytes per element of the main input, by kernel and argument."""
    rows: list[Row] = []
    if not cases:
        return rows
    with Interpreter() as interpreter:
        for case in cases:
            seen = set()
            for function, args in case.calls().items():
                counted = interpreter.traffic(case.operator, function, *args, settings=dict(case.settings))
                for kernel, arguments in counted.items():
                    if kernel in seen:
                        continue
                    seen.add(kernel)
                    row: Row = {"operator": case.operator, "kernel": kernel, "case": case.label}
                    for i, kind in enumerate(("moved", "once")):
                        parts = {name: size[i] / case.elements() for name, size in sorted(arguments.items())}
                        row |= {kind: round(sum(parts.values()), 2)}
                        row[f"{kind}_by_argument"] = {name: round(size, 3) for name, size in parts.items()}
                    rows.append(row)
                    print(f"{case.operator:22s} {kernel:18s} {case.label:36s} {row['moved']:8.2f} B moved", flush=True)
    return rows


def failures(rows: list[Row]) -> list[str]:
    """The limits that are not met."""
    return [row_text(row) for row in rows if row["spilled"] or row["registers"] > MOST_REGISTERS]


def markdown(builds: list[Row], traffic: list[Row]) -> str:
    """The report as a document."""
    import triton

    lines = [
        "# Triton kernels: compiled and interpreted, never timed on a GPU",
        "",
        f"`python -m benchmarks.triton_report`, Triton {triton.__version__}, floating-point fusion on.",
        f"Limits: no spills, at most {MOST_REGISTERS} registers.",
        "",
        "| operator | kernel | configuration | warps | registers "
        + " | ".join(ARCHITECTURES)
        + " | spilled | shared |",
        "|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in builds:
        groups.setdefault((row["operator"], row["kernel"], row["case"], row["warps"]), []).append(row)
    for (operator, kernel, case, warps), rows in groups.items():
        registers = " | ".join(str(row["registers"]) for row in rows)
        spilled, shared = (max(row[key] for row in rows) for key in ("spilled", "shared"))
        lines.append(f"| {operator} | {kernel} | {case} | {warps} | {registers} | {spilled} | {shared} |")
    lines += [
        "",
        "Bytes per element of the main input, counted in the interpreter. `moved`: every element a load or store",
        "touches, those that the compiler loads once included; `once`: each address once per program, as a perfect",
        "first-level cache would have it.",
        "",
        "| operator | kernel | configuration | moved | once | largest parts of `moved` |",
        "|---|---|---|---|---|---|",
    ]
    for row in traffic:
        parts = sorted(row["moved_by_argument"].items(), key=lambda pair: -pair[1])[:6]
        text = ", ".join(f"{name} {size:.2f}" for name, size in parts)
        lines.append(
            f"| {row['operator']} | {row['kernel']} | {row['case']} | {row['moved']} | {row['once']} | {text} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Compiles, counts, writes and judges."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--operator", help="only this one; nothing is written")
    parser.add_argument("--quick", action="store_true", help="the first case of each operator; nothing is written")
    parser.add_argument("--architecture", choices=list(ARCHITECTURES), help="only this one; nothing is written")
    chosen = parser.parse_args()
    cases = [case for case in CASES if chosen.operator in (None, case.operator)]
    if chosen.quick:
        cases = [
            next(c for c in cases if c.operator == operator) for operator in dict.fromkeys(c.operator for c in cases)
        ]
    builds = build_rows(
        [case for case in cases if not case.counted],
        [chosen.architecture] if chosen.architecture else list(ARCHITECTURES),
    )
    traffic = traffic_rows([case for case in cases if case.counted])
    if not (chosen.operator or chosen.quick or chosen.architecture):
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "triton_report.json").write_text(json.dumps({"builds": builds, "traffic": traffic}, indent=1) + "\n")
        (RESULTS / "triton_report.md").write_text(markdown(builds, traffic))
    failed = failures(builds)
    print("\n".join(["", "Not met:", *failed] if failed else ["", "every limit is met"]))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
