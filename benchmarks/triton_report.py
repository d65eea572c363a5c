"""Registers, shared memory, spills and memory traffic of medseq's Triton kernels, without a GPU.

Run: `python -m benchmarks.triton_report` (about three minutes). Writes benchmarks/results/triton_report.{json,md}.

Every configuration is compiled for sm_80 and sm_90a. Traffic is counted by running the kernels in Triton's interpreter:
`moved` is every element that a load or store touches, re-read halos and states included; `once` counts an address once
per program, `in all` once per launch. Exits with 1 where a kernel spills or takes more than 128 registers, or where
the cross scan's kernel that holds an image in registers moves more than 1.3 times the least bytes.
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
MOST_BYTES = 1.3
CHANNELS = 192
RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]
IDEAL = [
    "",
    "## The cross scan against its ideal",
    "",
    "The least a forward pass can move is x once, delta four times, y once, and B and C once for all channels:",
    "26.7 bytes per element in float32 at 192 channels and N 16. `/ ideal` counts everything that the programs",
    "move except that B and C count once per image (its programs run side by side and share them in the second-",
    "level cache; a program on its own reads them for its own channels, 512 bytes per pixel at N 16, which is in",
    "`moved`).",
    "",
    "An image that fits one program's registers, up to 64 x 64, meets the 1.3 that was asked for. A larger one",
    "does not: x is read once per direction (4) and y is written, then read and written three times (7), beside",
    "delta (4) and the states saved on the way. To read x once for a direction and its reverse, or to keep y from",
    "one direction to the next, a program must hold all tokens of the image, because each direction starts where",
    "the other ends: 128 KiB of registers for x and y at 128 x 128, half of what a processor has, before the",
    "scan's own tiles. Counting B and C per program as well, 1.3 is out of reach for any design: it takes about",
    "48 channels per program, 3 MiB of x alone.",
]


def build_rows(cases: list[Case], architectures: list[str]) -> list[Row]:
    """A row for every kernel of every case and architecture."""
    rows = []
    for case in cases:
        seen = set()
        for function, args in case.calls().items():
            for launch in recorded(case.operator, function, args, dict(case.settings)):
                if (key := str(launch)) in seen:  # backward may begin with forward's kernels
                    continue
                seen.add(key)
                walk = {"COLUMNS": "down", "REVERSE": "back", "ADD": "adding"} if case.operator == "cross_scan" else {}
                label = ", ".join([case.label, *(word for name, word in walk.items() if launch.constants.get(name))])
                for architecture in architectures:
                    build = compiled(launch, architecture)
                    row = {"operator": case.operator, "kernel": launch.name, "case": label}
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
                    for i, kind in enumerate(("moved", "once", "in_all")):
                        parts = {name: size[i] / case.elements() for name, size in sorted(arguments.items())}
                        row |= {kind: round(sum(parts.values()), 2)}
                        row[f"{kind}_by_argument"] = {name: round(size, 3) for name, size in parts.items()}
                    if case.operator == "cross_scan" and kernel in ("image_kernel", "forward_kernel"):
                        row["against_ideal"] = round(against_ideal(row, case.sizes[4]), 3)
                    rows.append(row)
                    print(f"{case.operator:22s} {kernel:18s} {case.label:36s} {row['moved']:8.2f} B moved", flush=True)
    return rows


def against_ideal(row: Row, state: int) -> float:
    """Bytes of a forward cross scan over the least: x, four delta and y once, B and C once for all `CHANNELS`.

    All that programs move counts, re-read tokens and states included, but for B and C: the programs of one image run
    side by side and share them in the second-level cache.
    """
    shared = 4 * 2 * state * 4 / CHANNELS
    own = sum(size for name, size in row["moved_by_argument"].items() if name not in ("Bm", "Cm"))
    return float((own + shared) / (6 * 4 + shared))


def failures(builds: list[Row], traffic: list[Row]) -> list[str]:
    """The limits that are not met."""
    failed = [row_text(row) for row in builds if row["spilled"] or row["registers"] > MOST_REGISTERS]
    for row in traffic:
        if row["kernel"] == "image_kernel" and row["against_ideal"] > MOST_BYTES:
            failed.append(f"{row['case']}: {row['against_ideal']:.2f} x the ideal bytes")
    return failed


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
        "first-level cache would have it; `in all`: each address once per launch.",
        "",
        "| operator | kernel | configuration | moved | once | in all | / ideal | largest parts of `moved` |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in traffic:
        parts = sorted(row["moved_by_argument"].items(), key=lambda pair: -pair[1])[:6]
        text = ", ".join(f"{name} {size:.2f}" for name, size in parts)
        ratio = row.get("against_ideal", "")
        place = f"{row['operator']} | {row['kernel']} | {row['case']}"
        lines.append(f"| {place} | {row['moved']} | {row['once']} | {row['in_all']} | {ratio} | {text} |")
    lines += IDEAL
    return "\n".join(lines) + "\n"


def write(operators: list[str], rows: dict[str, list[Row]]) -> None:
    """Replaces the rows of these operators in the results."""
    path = RESULTS / "triton_report.json"
    kept: dict[str, list[Row]] = json.loads(path.read_text()) if path.exists() else {"builds": [], "traffic": []}
    for kind, new in rows.items():
        kept[kind] = sorted(
            [r for r in kept[kind] if r["operator"] not in operators] + new, key=lambda r: r["operator"]
        )
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(kept, indent=1) + "\n")
    (RESULTS / "triton_report.md").write_text(markdown(kept["builds"], kept["traffic"]))


def main() -> int:
    """Compiles, counts, writes and judges."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--operator", help="only this one; its rows of the results are replaced")
    parser.add_argument("--quick", action="store_true", help="the first case of each operator; nothing is written")
    parser.add_argument("--architecture", choices=list(ARCHITECTURES), help="only this one; nothing is written")
    chosen = parser.parse_args()
    cases = [case for case in CASES if chosen.operator in (None, case.operator)]
    operators = list(dict.fromkeys(case.operator for case in cases))
    if chosen.quick:
        cases = [next(c for c in cases if c.operator == operator) for operator in operators]
    builds = build_rows(
        [case for case in cases if not case.counted],
        [chosen.architecture] if chosen.architecture else list(ARCHITECTURES),
    )
    traffic = traffic_rows([case for case in cases if case.counted])
    if not (chosen.quick or chosen.architecture):
        write(operators, {"builds": builds, "traffic": traffic})
    failed = failures(builds, traffic)
    print("\n".join(["", "Not met:", *failed] if failed else ["", "every limit is met"]))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
