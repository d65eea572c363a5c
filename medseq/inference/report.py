"""``report.html`` from ``report.json`` alone: one self-contained page without scripts. No torch.

Order of a reader's questions: what went wrong, what came out and how far to trust it, what was left out, and how it
was computed.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from medseq.errors import FormatError
from medseq.inference.mil_report import calibration_plot, mil_card

__all__ = ["item_card", "page", "render_report", "report_from_json", "report_parts"]

# A page of more cards no longer opens quickly; report.json always has all.
_MOST_CARDS = 500
_STATES = (
    ("failed", "failed"),
    ("done", "done"),
    ("queued", "not finished"),
    ("skipped", "skipped (not an input)"),
)


def report_from_json(path: str | Path) -> str:
    """The HTML page of a ``report.json`` file.

    Raises:
        FormatError: Not a report, or of another schema.
    """
    try:
        report = json.loads(Path(path).read_text("utf-8"))
    except ValueError:
        raise FormatError("report.json is not readable", wanted="JSON in UTF-8") from None
    return render_report(report)


def render_report(report: Mapping[str, Any]) -> str:
    """The HTML page of a report that is in memory (see `medseq.inference.report_json.Report`).

    Raises:
        FormatError: Another schema.
    """
    if report.get("schema") != 1:
        raise FormatError("the report has another schema", found=report.get("schema"), wanted=1)
    return "".join(report_parts(report, lambda state: (item for item in report["items"] if item["state"] == state)))


def report_parts(
    report: Mapping[str, Any], items: Callable[[Literal["failed", "done", "skipped"]], Iterable[Mapping[str, Any]]]
) -> Iterator[str]:
    """The HTML page piece by piece, so that a run of any size can be told.

    Args:
        report: A report; its items are not looked at.
        items: Its items in a state, in order.
    """
    run, counts = report["run"], report["counts"]
    head, tail = page(f"{run['bundle']['name']} {run['bundle']['version']}: report", report["notice"], "\0").split("\0")
    yield head + _header(report)
    yield f"<h2>Failed <span class='n'>{counts.get('failed', 0)}</span></h2>"
    yield _hidden_names(items("failed"))
    yield from _cards(items("failed"), counts.get("failed", 0), _failed_card, "Nothing failed.")
    yield f"<h2>Results <span class='n'>{counts.get('done', 0)}</span></h2>"
    yield f"<p class='quiet'>{_pictures_note(report)}</p>{_calibration(run['bundle'])}<br>"
    yield from _cards(items("done"), counts.get("done", 0), _done_card, "No item was finished.")
    yield _skipped(items("skipped"))
    yield _computed(report) + tail


def page(title: str, notice: str, body: str) -> str:
    """A self-contained page without scripts.

    Args:
        title: Plain text.
        notice: Plain text, shown above everything.
        body: HTML.
    """
    style = Path(__file__).with_name("report.css").read_text("utf-8")
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        "<meta http-equiv='Content-Security-Policy' "
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{style}</style></head><body>"
        f"<div class='notice' role='note'>{escape(notice)}</div><main>{body}</main></body></html>\n"
    )


def item_card(item: Mapping[str, Any]) -> str:
    """One item as HTML."""
    return _failed_card(item) if item["state"] == "failed" else _done_card(item)


def _header(report: Mapping[str, Any]) -> str:
    run, counts = report["run"], dict(report["counts"])
    counts["queued"] = counts.get("queued", 0) + counts.get("running", 0)
    tiles = [
        f"<li class='{state if counts.get(state, 0) else 'none'}'><b>{counts.get(state, 0)}</b>{words}</li>"
        for state, words in _STATES
        if counts.get(state, 0) or state in ("failed", "done")
    ]
    bundle = run["bundle"]
    what = " · ".join(
        filter(None, [", ".join(bundle.get("modality", [])), bundle.get("task"), bundle.get("intended_use")])
    )
    stopped = ""
    if run.get("interrupted"):
        stopped = "<p><span class='pill'>interrupted</span> Run the same command again to finish the rest.</p>"
    return (
        f"<header><h1>{escape(bundle['name'])} {escape(bundle['version'])}</h1><p class='quiet'>{escape(what)}</p>"
        f"<p class='quiet'>Started {escape(run['created_utc'])}, report of {escape(run['finished_utc'])}.</p>{stopped}"
        f"<ul class='tiles'>{''.join(tiles)}</ul></header>"
    )


def _pictures_note(report: Mapping[str, Any]) -> str:
    if report["run"]["bundle"].get("task") == "mil":
        return _picture_note(report).strip()
    return f"Difference pictures: {escape(report['run']['difference_window'])}.{_picture_note(report)}"


def _calibration(bundle: Mapping[str, Any]) -> str:
    points = bundle.get("calibration") or []
    return f"<div class='pictures'>{calibration_plot(points)}</div>" if points else ""


def _picture_note(report: Mapping[str, Any]) -> str:
    shown, done = report["run"]["items_with_pictures"], report["counts"].get("done", 0)
    return "" if shown == done else f" Pictures of {shown} of {done} items fit into this page, those with flags first."


def _hidden_names(failed: Iterable[Mapping[str, Any]]) -> str:
    first = next(iter(failed), None)
    if first is None or "source" in first:
        return ""
    return "<p class='quiet'>Names of files are withheld; run again with --show-identifiers to see them here.</p><br>"


def _cards(items: Iterable[Mapping[str, Any]], count: int, card: Any, empty: str) -> Iterator[str]:
    if not count:
        yield f"<p class='quiet'>{empty}</p>"
    yield from map(card, islice(items, _MOST_CARDS))
    if count > _MOST_CARDS:
        yield f"<p class='quiet'>{count - _MOST_CARDS} more are listed in report.json.</p>"


def _failed_card(item: Mapping[str, Any]) -> str:
    files = f"{item['input_files']} file{'s' if item['input_files'] != 1 else ''}"
    return (
        f"<article class='failed'><h3>{_link(item)}"
        f"<span class='pill'>{escape(item['reason_code'] or 'error')}</span>"
        f"<small>{escape(item['kind'])} · {escape(_source(item))} · {files}</small></h3>"
        f"<p class='reason'>{escape(item['reason'] or '')}</p></article>"
    )


def _done_card(item: Mapping[str, Any]) -> str:
    view = item.get("preview")
    facts = [escape(item["kind"]), escape(_source(item))]
    is_bag = view is not None and view.get("kind") == "bag"
    if view and not is_bag:
        facts.append(" × ".join(str(side) for side in view["shape"]))
    if item["seconds"] is not None:
        facts.append(f"{item['seconds']:.1f} s")
    flags = "".join(
        f"<li class='{escape(flag['level'])}'><b>{escape(flag['code'])}</b>: {escape(flag['message'])}</li>"
        for flag in item["flags"]
    )
    gone = f"<p class='reason quiet'>{escape(item['reason'])}</p>" if item["reason"] else ""
    return (
        f"<article><h3>{_link(item)}<small>{' · '.join(facts)}</small></h3>{gone}"
        f"{f'<ul class=flags>{flags}</ul>' if flags else ''}"
        f"{mil_card(view) if view and is_bag else _pictures(view) + _numbers(item, view)}{_files(item)}</article>"
    )


def _link(item: Mapping[str, Any]) -> str:
    """The item's id; in the report of the run, a link to its page."""
    name = f"<span class='mono'>{escape(item['id'])}</span>"
    return name if "events" in item else f"<a href='report/{escape(item['id'])}.html'>{name}</a>"


def _source(item: Mapping[str, Any]) -> str:
    return item.get("source") or item["label"]


def _pictures(view: Mapping[str, Any] | None) -> str:
    if not view:
        return ""
    window, half = view["window"], view["difference_half_width"]
    units = "" if window["units"] == "1" else f" {window['units']}"
    span = f"{window['name']}, {window['low']:.4g} to {window['high']:.4g}{units}"
    captions = {
        "before": f"<b>Before</b> · slice {view['plane'] + 1} of {view['planes']} · {escape(span)}",
        "after": "<b>After</b> · the same window",
        "difference": f"<b>After - before</b> · ±{half:.4g}{escape(units)}",
    }
    ratio = f"aspect-ratio:{view['width_over_height']:.4f};object-fit:fill"
    if view["width_over_height"] < 0.86:
        # Tall planes are bounded by the page's height, not by the column.
        ratio = f"aspect-ratio:{view['width_over_height']:.4f};object-fit:fill;width:auto;height:420px;max-width:100%"
    figures = "".join(
        f"<figure><img style='{ratio}' alt='{name}, plane {view['plane'] + 1} of {view['planes']}' "
        f"src='data:image/png;base64,{escape(view['pictures'][name])}'><figcaption>{caption}</figcaption></figure>"
        for name, caption in captions.items()
    )
    return f"<div class='pictures'>{figures}</div>"


def _numbers(item: Mapping[str, Any], view: Mapping[str, Any] | None) -> str:
    metrics, units = item["metrics"], ""
    if view and view["window"]["units"] != "1":
        units = f" {view['window']['units']}"
    if not metrics:
        return ""
    if "data_residual" in metrics:
        pairs = [
            ("Contradiction of the data, worst slice", _number(metrics, "data_residual")),
            ("The same, mean", _number(metrics, "data_residual_mean")),
            ("Over the noise, worst slice", _number(metrics, "residual_over_noise")),
            ("Acceleration", _number(metrics, "acceleration")),
            ("Noise over signal", _number(metrics, "noise_to_signal")),
        ]
        return _terms(pairs)
    pairs = [
        (
            "Noise sd, before → after",
            f"{_number(metrics, 'noise_sd_before')} → {_number(metrics, 'noise_sd_after')}{units}",
        ),
        ("Mean shift", f"{_number(metrics, 'mean_shift')}{units}"),
        ("Change, sd", f"{_number(metrics, 'residual_sd')}{units}"),
        ("Largest change", f"{_number(metrics, 'max_change')}{units}"),
        ("Correlation with edges", _number(metrics, "edge_correlation")),
    ]
    return _terms(pairs)


def _terms(pairs: Sequence[tuple[str, str]]) -> str:
    rows = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs)
    return f"<dl class='numbers'>{rows}</dl>"


def _number(metrics: Mapping[str, float], name: str) -> str:
    return f"{metrics[name]:.3g}" if name in metrics else "unknown"


def _files(item: Mapping[str, Any]) -> str:
    rows = []
    for output in item["outputs"]:
        where = escape(output["relpath"] or "named like its source")
        cells = f"<td>{escape(output['role'])}</td><td class='mono'>{where}</td><td class='n'>{output['files']}</td>"
        rows.append(f"<tr>{cells}<td class='mono'>{escape(output['sha256'][:16])}</td></tr>")
    if not rows:
        return ""
    head = "<thead><tr><th>Role</th><th>Where</th><th>Files</th><th>sha256</th></tr></thead>"
    return f"<details><summary>Files</summary><table>{head}<tbody>{''.join(rows)}</tbody></table></details>"


def _skipped(items: Iterable[Mapping[str, Any]]) -> str:
    reasons = Counter((item["reason_code"] or "other", item["reason"] or "") for item in items)
    if not reasons:
        return ""
    rows = "".join(
        f"<tr><td>{escape(code)}</td><td>{escape(reason)}</td><td class='n'>{count}</td></tr>"
        for (code, reason), count in reasons.most_common(100)
    )
    head = "<thead><tr><th>Why</th><th></th><th>Files</th></tr></thead>"
    return f"<h2>Skipped <span class='n'>{reasons.total()}</span></h2><table>{head}<tbody>{rows}</tbody></table>"


def _computed(report: Mapping[str, Any]) -> str:
    run, env = report["run"], report["environment"]
    params = ", ".join(f"{key} {_plain(value)}" for key, value in run["params"].items())
    libraries = ", ".join(f"{name} {version}" for name, version in env.get("libraries", {}).items())
    operators = "; ".join(
        f"{entry.get('operator')} on {entry.get('device')}: {entry.get('implementation')}"
        for entry in report["doctor"].get("operators", [])
    )
    pairs: Iterable[tuple[str, Any]] = (
        ("Bundle hash", run["bundle"]["hash"]),
        ("Parameters", params),
        ("Parameter hash", run["params_hash"]),
        ("medseq", run["version"]),
        ("Device", f"{env.get('device')}, {env.get('cores')} cores, {env.get('system')}"),
        ("Python", env.get("python")),
        ("Libraries", libraries),
        ("Operators", operators or "none registered"),
    )
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in pairs)
    return f"<h2>How it was computed</h2><article><dl>{rows}</dl></article>"


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return " × ".join(str(entry) for entry in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
