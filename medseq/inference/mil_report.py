"""A scored bag in the report: what is called and how sure, the heat map, the patches that mattered. No torch.

`mil_view` makes plain data from the outputs of an item, `mil_card` turns them into HTML, and `calibration_plot` draws
how far the probabilities of a bundle were right on its validation cases.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from medseq.inference.predictor import Output

__all__ = ["calibration_plot", "mil_card", "mil_view"]

_SIDE = 220


def mil_view(outputs: Sequence[Output]) -> dict[str, Any]:
    """Scores and pictures of one item, JSON-ready."""
    view: dict[str, Any] = {"kind": "bag", "pictures": {}}
    for output in outputs:
        if (output.role, output.kind) == ("scores", "json"):
            view["scores"] = json.loads(output.paths[0].read_text("utf-8"))
        elif output.kind == "png":
            view["pictures"][output.role] = base64.b64encode(output.paths[0].read_bytes()).decode("ascii")
    return view


def mil_card(view: Mapping[str, Any]) -> str:
    """Probabilities as bars, then the pictures."""
    scores = view["scores"]
    if scores["target"] == "survival":
        head = f"<p><b>Risk {scores['risk']:.3f}</b> <span class='quiet'>minus the sum of the survival curve</span></p>"
    else:
        rule = "the most probable class"
        if scores["threshold"] is not None and len(scores["probabilities"]) == 2:
            rule = f"called from {scores['threshold']:.3g} on, fitted on validation cases"
        head = f"<p><b>{escape(scores['call'])}</b> <span class='quiet'>{escape(rule)}</span></p>"
    bars = "".join(
        f"<div><dt>{escape(name)}</dt><dd><meter min='0' max='1' value='{p:.4f}'></meter> {p:.3f}</dd></div>"
        for name, p in zip(scores["classes"], scores["probabilities"], strict=True)
    )
    captions = {
        "overlay": "<b>Heat map</b> · percentile over the slide, dark to light",
        "attention": "<b>Patches with the highest values</b>, highest first",
    }
    figures = "".join(
        f"<figure><img style='background:#fff' alt='{name}' "
        f"src='data:image/png;base64,{escape(view['pictures'][name])}'>"
        f"<figcaption>{caption}</figcaption></figure>"
        for name, caption in captions.items()
        if name in view["pictures"]
    )
    facts = f"<p class='quiet'>{scores['instances']} patches{_distance(scores)}</p>"
    pictures = f"<div class='pictures'>{figures}</div>" if figures else ""
    return f"{head}<dl class='numbers'>{bars}</dl>{facts}{pictures}"


def calibration_plot(points: Sequence[Mapping[str, float]]) -> str:
    """Mean probability against how often it came true, an SVG; the area of a point grows with its cases.

    Args:
        points: Each with ``probability``, ``observed`` and ``cases``.
    """
    if not points:
        return ""
    most = max(point["cases"] for point in points)
    dots = "".join(
        f"<circle cx='{20 + point['probability'] * 180:.1f}' cy='{200 - point['observed'] * 180:.1f}' "
        f"r='{3 + 6 * (point['cases'] / most) ** 0.5:.1f}' fill='currentColor' fill-opacity='.6'>"
        f"<title>{point['probability']:.2f}: {point['observed']:.2f} of {point['cases']:.0f}</title></circle>"
        for point in points
    )
    total = sum(point["cases"] for point in points)
    return (
        f"<figure><svg viewBox='0 0 {_SIDE} {_SIDE}' width='{_SIDE}' role='img' aria-label='calibration'>"
        "<rect x='20' y='20' width='180' height='180' fill='none' stroke='currentColor' stroke-opacity='.4'/>"
        "<line x1='20' y1='200' x2='200' y2='20' stroke='currentColor' stroke-opacity='.4' stroke-dasharray='4'/>"
        f"{dots}<text x='110' y='216' font-size='11' text-anchor='middle' fill='currentColor'>probability</text>"
        "<text x='12' y='110' font-size='11' text-anchor='middle' fill='currentColor' "
        "transform='rotate(-90 12 110)'>came true</text></svg>"
        f"<figcaption>Calibration on {total:.0f} validation cases</figcaption></figure>"
    )


def _distance(scores: Mapping[str, Any]) -> str:
    if scores["distance"] is None:
        return ""
    return f" · distance from the training bags {scores['distance']:.3g}, limit {scores['distance_limit']:.3g}"
