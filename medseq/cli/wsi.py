"""`medseq wsi`: whole-slide images: look at them, find their tissue, turn them into bags of features."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from medseq.cli.console import AsJson, Quiet, Verbose, print_json, progress_bar, say, table

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Whole-slide images: check them, find tissue, extract features.")

Mpp = Annotated[
    float | None, typer.Option("--mpp", help="Microns per pixel of level 0, for slides that do not say it rightly.")
]
ShowIdentifiers = Annotated[
    bool, typer.Option("--show-identifiers", help="Print file names instead of hashes. Mind who reads it.")
]


@app.command("check")
def check(
    path: Annotated[Path, typer.Argument(help="Slide, or folder of slides.")],
    mpp: Mpp = None,
    scan: Annotated[
        Literal["none", "sample", "all"],
        typer.Option("--scan", help="Read no pixels, 64 blocks spread over the slide, or every pixel once."),
    ] = "sample",
    show_identifiers: ShowIdentifiers = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Tell whether slides can be used: size, levels, microns per pixel and where that comes from, unreadable parts.

    Exit code 0: all can; 2: no slides; 3: some cannot, and the table says why and what to do.
    """
    from medseq.io.privacy import show_identifiers as set_show_identifiers
    from medseq.io.slide_check import check_slide
    from medseq.io.slide_find import find_slides

    set_show_identifiers(show_identifiers)
    slides = find_slides(path)
    if not slides:
        say("no slides found")
        raise typer.Exit(2)
    found = []
    with progress_bar("check", quiet=quiet or as_json) as progress:
        for number, slide in enumerate(slides):
            progress(number, len(slides), "")
            found.append(check_slide(slide, mpp, scan))
    if as_json:
        print_json([slide.as_dict() for slide in found])
    else:
        columns = ["slide", "format", "level 0", "levels", "um/px", "objective", "ICC", "bad", "usable", "findings"]
        table(columns, [_check_row(slide) for slide in found])
    raise typer.Exit(0 if all(slide.is_usable for slide in found) else 3)


@app.command("tissue")
def tissue(
    input: Annotated[Path, typer.Argument(help="Slide, or folder of slides.")],
    output: Annotated[Path, typer.Argument(help="Folder for one picture a slide and tissue.json.")],
    mpp: Mpp = None,
    min_tissue_mm2: Annotated[float, typer.Option("--min-tissue-mm2", min=0, help="Smaller pieces are dust.")] = 0.05,
    min_hole_mm2: Annotated[
        float, typer.Option("--min-hole-mm2", min=0, help="Smaller holes belong to the tissue.")
    ] = 0.02,
    icc: Annotated[bool, typer.Option("--icc/--no-icc", help="Apply the slide's colour profile.")] = True,
    names: Annotated[
        Literal["source", "id"], typer.Option("--names", help="Name pictures like the slides, or by a hash.")
    ] = "source",
    show_identifiers: ShowIdentifiers = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Find the tissue of slides, draw it on a picture, and measure area, focus, ink and folds.

    Exit code 0: tissue everywhere; 2: no slides; 3: some slides failed or are empty.
    """
    from medseq.inference.tissue_folder import tissue_folder
    from medseq.io.privacy import show_identifiers as set_show_identifiers
    from medseq.io.tissue import TissueRules

    set_show_identifiers(show_identifiers)
    rules = TissueRules(min_tissue_mm2=min_tissue_mm2, min_hole_mm2=min_hole_mm2)
    with progress_bar("tissue", quiet=quiet or as_json) as progress:
        outcomes = tissue_folder(input, output, rules, mpp=mpp, icc=icc, names=names, progress=progress)
    if not outcomes:
        say("no slides found")
        raise typer.Exit(2)
    if as_json:
        print_json(outcomes)
    else:
        table(
            ["slide", "tissue mm2", "focus", "blurred", "pen", "folds", "finding"], [_tissue_row(o) for o in outcomes]
        )
    raise typer.Exit(3 if any(outcome["state"] == "failed" for outcome in outcomes) else 0)


@app.command("extract")
def extract(
    input: Annotated[Path, typer.Argument(help="Slide, or folder of slides.")],
    output: Annotated[Path, typer.Argument(help="Folder for one HDF5 bag a slide; run again to continue.")],
    encoder: Annotated[
        str, typer.Option("--encoder", help="hed-texture, FILE.onnx, timm:NAME, or a folder with model.safetensors.")
    ] = "hed-texture",
    weights: Annotated[Path | None, typer.Option("--weights", help="Checkpoint of timm:NAME.")] = None,
    mpp_target: Annotated[float, typer.Option("--mpp-target", help="Microns per pixel of the tiles.")] = 0.5,
    tile: Annotated[int, typer.Option("--tile", help="Side of a tile in pixels.")] = 256,
    overlap: Annotated[float, typer.Option("--overlap", help="Share of a tile that the next one covers too.")] = 0.0,
    min_tissue: Annotated[float, typer.Option("--min-tissue", help="Least share of tissue in a tile.")] = 0.25,
    min_tissue_mm2: Annotated[
        float, typer.Option("--min-tissue-mm2", min=0, help="Smaller pieces of tissue are dust.")
    ] = 0.05,
    stain: Annotated[
        Literal["macenko", "reinhard"] | None, typer.Option("--stain", help="Normalise stains to a fixed reference.")
    ] = None,
    mpp: Mpp = None,
    icc: Annotated[bool, typer.Option("--icc/--no-icc", help="Apply the slide's colour profile.")] = True,
    mean: Annotated[
        str | None, typer.Option("--mean", help="Of a network: three numbers, such as 0.5,0.5,0.5.")
    ] = None,
    sd: Annotated[str | None, typer.Option("--sd", help="Of a network: three numbers.")] = None,
    values: Annotated[
        Literal["1", "255"], typer.Option("--values", help="Of a network: colours from 0 to 1, or to 255.")
    ] = "1",
    colours: Annotated[Literal["rgb", "bgr"], typer.Option("--colours", help="Of a network: their order.")] = "rgb",
    output_node: Annotated[str | None, typer.Option("--output-node", help="Of ONNX: the node to take.")] = None,
    encoder_mpp: Annotated[
        float | None, typer.Option("--encoder-mpp", help="Microns per pixel the network is made for.")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Tiles encoded at once.")] = 32,
    max_bad_tiles: Annotated[
        float, typer.Option("--max-bad-tiles", min=0, max=0.99, help="Share of unreadable tiles a slide may have.")
    ] = 0.05,
    device: Annotated[str, typer.Option("--device", help="Of timm and Hugging Face: cpu, cuda …")] = "cpu",
    names: Annotated[
        Literal["source", "id"], typer.Option("--names", help="Name bags like the slides, or by a hash.")
    ] = "source",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace bags that were made another way.")] = False,
    show_identifiers: ShowIdentifiers = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Turn slides into bags of features: medseq wsi extract IN OUT. Leaves OUT/extract.json and pictures in OUT/qc.

    Exit code 0: all done; 2: no slides; 3: some failed (extract.json says why); 130: interrupted, run again to go on.
    """
    from medseq.inference.encoders import load_encoder
    from medseq.inference.extract_folder import extract_folder
    from medseq.inference.extract_settings import ExtractSettings
    from medseq.io.privacy import show_identifiers as set_show_identifiers
    from medseq.io.tissue import TissueRules

    set_show_identifiers(show_identifiers)
    network = load_encoder(
        encoder,
        weights=weights,
        preprocess=_preprocess(mean, sd, values, colours),
        output=output_node,
        mpp=encoder_mpp,
        device=device,
    )
    settings = ExtractSettings(
        mpp_target=mpp_target,
        tile=tile,
        overlap=overlap,
        min_tissue=min_tissue,
        stain=stain,
        slide_mpp=mpp,
        icc=icc,
        batch=batch,
        max_bad_share=max_bad_tiles,
        tissue=TissueRules(min_tissue_mm2=min_tissue_mm2),
    )
    try:
        with progress_bar("extract", quiet=quiet or as_json) as progress:
            summary = extract_folder(
                input, output, network, settings, names=names, overwrite=overwrite, progress=progress
            )
    except KeyboardInterrupt:
        say("interrupted; the same command continues")
        raise typer.Exit(130) from None
    _tell_extraction(summary, output, as_json, quiet)
    raise typer.Exit(summary.exit_code)


def _tell_extraction(summary: Any, output: Path, as_json: bool, quiet: bool) -> None:
    if as_json:
        outcomes = [vars(outcome) for outcome in summary.outcomes]
        print_json({"counts": summary.counts, "exit_code": summary.exit_code, "outcomes": outcomes})
        return
    for outcome in summary.outcomes:
        if outcome.state == "failed":
            say(f"{outcome.label}: {outcome.reason}")
        for remark in outcome.remarks:
            say(f"{outcome.label}: {remark}", quiet=quiet)
    tiles = sum(outcome.tiles for outcome in summary.outcomes)
    words = ", ".join(f"{count} {state}" for state, count in sorted(summary.counts.items())) or "no slides found"
    say(f"{words}, {tiles} tiles", quiet=quiet and summary.exit_code == 0)
    if summary.outcomes:
        say(f"table: {output / 'extract.json'}", quiet=quiet)


def _preprocess(mean: str | None, sd: str | None, values: str, colours: Literal["rgb", "bgr"]) -> Any:
    """None if the caller said nothing: the encoder may know."""
    if mean is None and sd is None and values == "1" and colours == "rgb":
        return None
    from medseq.inference.encoders import IMAGENET_MEAN, IMAGENET_SD, Preprocess

    factor = float(values)
    default = [tuple(value * factor for value in stated) for stated in (IMAGENET_MEAN, IMAGENET_SD)]
    means = default[0] if mean is None else _three(mean, "--mean")
    sds = default[1] if sd is None else _three(sd, "--sd")
    return Preprocess(means, sds, factor / 255, colours)


def _three(text: str, option: str) -> tuple[float, ...]:
    from medseq.errors import InputError

    try:
        numbers = tuple(float(word) for word in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != 3:
        raise InputError("three numbers with commas are needed", where=option, found=text, wanted="such as 0.5,0.5,0.5")
    return numbers


def _check_row(slide: Any) -> list[str]:
    size = " x ".join(str(side) for side in slide.dims[0]) if slide.dims else "-"
    levels = ", ".join(f"{factor:g}" for factor in slide.downsamples) or "-"
    mpp = f"{slide.mpp[0]:.4g} ({slide.mpp_source})" if slide.mpp else "unknown"
    power = f"{slide.objective_power:g}x" if slide.objective_power else "-"
    bad = f"{slide.bad} of {slide.scanned}" if slide.scanned else "-"
    findings = "; ".join((*slide.problems, *slide.remarks)) or "none"
    usable = "yes" if slide.is_usable else "no"
    return [slide.label, slide.format or "-", size, levels, mpp, power, slide.icc or "-", bad, usable, findings]


def _tissue_row(outcome: dict[str, Any]) -> list[str]:
    qc = outcome["qc"]
    if qc is None:
        return [outcome["label"], "-", "-", "-", "-", "-", outcome["reason"]]
    focus = "-" if qc["focus_median"] is None else f"{qc['focus_median']:.0f}"
    blurred = "-" if qc["blurred_share"] is None else f"{qc['blurred_share']:.0%}"
    shares = [f"{qc[key]:.1%}" for key in ("pen_share", "fold_share")]
    return [outcome["label"], f"{qc['tissue_mm2']:.3g}", focus, blurred, *shares, outcome["reason"] or "none"]
