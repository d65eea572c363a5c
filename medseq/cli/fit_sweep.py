"""`medseq fit TASK --sweep key=v1,v2`: one training for every combination of values, resumed and tabulated."""

import csv
import hashlib
import itertools
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medseq.cli.console import say
from medseq.errors import InputError

__all__ = ["combinations", "fit_sweep"]

Setting = tuple[str, str]


def combinations(sweeps: Sequence[str]) -> list[tuple[Setting, ...]]:
    """All combinations of ``key=v1,v2``; the last key varies fastest.

    Raises:
        InputError: Not of this form, or a key twice.
    """
    axes: list[list[Setting]] = []
    for text in sweeps:
        key, equals, values = text.partition("=")
        choices = [value for value in _split(values) if value]
        if not key or not equals or not choices:
            raise InputError("not a sweep", where="--sweep", found=text, wanted="key=value,value,…")
        axes.append([(key.lstrip("-"), value) for value in choices])
    keys = [axis[0][0] for axis in axes]
    if len(set(keys)) != len(keys):
        raise InputError("a key is swept twice", where="--sweep", found=", ".join(keys))
    return list(itertools.product(*axes))


def fit_sweep(task: str, arguments: Sequence[str], sweeps: Sequence[str], *, out: Path, quiet: bool = False) -> Path:
    """Run what is missing, and write ``sweep.csv`` and ``sweep.md``.

    Every combination has a folder of its own under `out`. One that has finished is not run again; one that was
    interrupted goes on from its last checkpoint.

    Args:
        task: A key of `medseq.cli.training.TASKS`.
        arguments: What would be given to a single training.
        sweeps: See `combinations`.
        out: The sweep's folder; it belongs to these arguments.
        quiet: Say nothing on the way.

    Returns:
        The table in Markdown.

    Raises:
        InputError: The folder holds a sweep of other arguments.
    """
    from medseq.cli.training import task_cli

    about = {"task": task, "arguments": list(arguments)}
    out.mkdir(parents=True, exist_ok=True)
    known = out / "sweep.json"
    if known.is_file() and json.loads(known.read_text(encoding="utf-8")) != about:
        raise InputError("the folder holds a sweep of other arguments", where="--out", remedy="choose another folder")
    known.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    rows: list[dict[str, Any]] = []
    wanted = combinations(sweeps)
    for number, settings in enumerate(wanted, 1):
        folder = out / _name(settings)
        done = folder / "metrics.json"
        if not done.is_file():
            say(f"[{number}/{len(wanted)}] {_words(settings)}", quiet=quiet)
            own = [f"--{key}={value}" for key, value in settings]
            here = [f"--trainer.default_root_dir={folder}", f"--trainer.logger.init_args.save_dir={folder}"]
            logger = ["--trainer.logger=pytorch_lightning.loggers.CSVLogger", *here[1:]]
            cli = task_cli(
                "fit", task, [*arguments, *own, here[0], *logger, "--trainer.enable_model_summary=false"], quiet=True
            )
            checkpoint = _newest(folder)
            with warnings.catch_warnings():
                # A resumed run has a log folder of its own beside the first one's.
                warnings.filterwarnings("ignore", message="The dirpath has changed")
                cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=checkpoint, weights_only=True)
            scores = {name: float(value) for name, value in cli.trainer.callback_metrics.items()}
            done.write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
        rows.append({**dict(settings), **json.loads(done.read_text(encoding="utf-8"))})
    return _tabulate(rows, [key for key, _ in wanted[0]], out)


def _tabulate(rows: list[dict[str, Any]], keys: list[str], out: Path) -> Path:
    names = keys + sorted({name for row in rows for name in row if name.startswith("val/")})
    with (out / "sweep.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    lines = [f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}"]
    for row in rows:
        cells = [f"{row[name]:.5g}" if isinstance(row.get(name), float) else str(row.get(name, "")) for name in names]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "One training each; scores of validation cases, at the end of the run."]
    path = out / "sweep.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _split(text: str) -> list[str]:
    """At the commas outside brackets, so that lists can be swept."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _words(settings: Sequence[Setting]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in settings)


def _name(settings: Sequence[Setting]) -> str:
    """A folder's name: readable, and not decided by what a value may contain."""
    words = "_".join(f"{key.rpartition('.')[2]}-{value}" for key, value in settings)
    plain = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in words)[:60]
    return f"{plain}_{hashlib.sha256(_words(settings).encode()).hexdigest()[:8]}"


def _newest(folder: Path) -> Path | None:
    return max(folder.rglob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns, default=None)
