"""`medseq predict`: run a bundle over a file or a folder, unattended."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from medseq.cli.console import AsJson, JsonLog, Quiet, Verbose, print_json, progress_bar, say

if TYPE_CHECKING:
    from medseq.inference.dry_run import RunPlan

__all__ = ["predict"]


def predict(
    bundle: Annotated[str, typer.Argument(help="Name of a shipped model (medseq zoo), or path of a bundle.")],
    input: Annotated[
        Path, typer.Argument(help="Folder, file or archive: DICOM, NIfTI, raw MR data, features, slides.")
    ],
    output: Annotated[Path, typer.Argument(help="Folder for results, ledger and report; run again to resume.")],
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1 …")] = "cpu",
    names: Annotated[
        Literal["id", "source"], typer.Option("--names", help="Name outputs by id, or like their source.")
    ] = "id",
    modality: Annotated[
        Literal["CT", "MR", "PT", "NM", "OT"] | None,
        typer.Option("--modality", help="What the input is, where its files do not say: CT, MR …"),
    ] = None,
    strength: Annotated[
        float | None, typer.Option("--strength", min=0.0, max=1.0, help="Share of the change to apply; default 1.")
    ] = None,
    tile: Annotated[int | None, typer.Option("--tile", help="Side of a tile for large planes.")] = None,
    overlap: Annotated[
        float | None, typer.Option("--overlap", help="Share of a tile that the next one covers.")
    ] = None,
    batch: Annotated[int | None, typer.Option("--batch", help="Planes or tiles a forward pass.")] = None,
    difference: Annotated[bool, typer.Option("--difference", help="Also write result - input.")] = False,
    uncertainty: Annotated[
        bool, typer.Option("--uncertainty", help="Also write the spread over flips and turns: eight times the work.")
    ] = False,
    resample: Annotated[bool, typer.Option("--resample", help="Put unevenly spaced slices on an even grid.")] = False,
    sens: Annotated[
        Literal["auto", "given", "espirit", "estimate"] | None,
        typer.Option("--sens", help="Raw data: where coil sensitivities come from; default auto."),
    ] = None,
    sens_maps: Annotated[
        Path | None, typer.Option("--sens-maps", help="Raw data: file of coil sensitivities, or a folder of them.")
    ] = None,
    fft: Annotated[
        Literal["centre", "centred", "corner"] | None,
        typer.Option("--fft", help="Raw data: where the zero frequency stands."),
    ] = None,
    virtual_coils: Annotated[
        int | None, typer.Option("--virtual-coils", min=1, help="Raw data: compress to so many coils; default 16.")
    ] = None,
    orientations: Annotated[
        int | None, typer.Option("--orientations", min=1, max=8, help="Raw data: views averaged; 1 is fastest.")
    ] = None,
    attribution: Annotated[
        Literal["attention", "gradient", "occlusion"] | None,
        typer.Option("--attribution", help="Slides: what heat maps show; default attention."),
    ] = None,
    top: Annotated[int | None, typer.Option("--top", min=1, max=200, help="Slides: patches on the sheet.")] = None,
    mpp: Annotated[float | None, typer.Option("--mpp", help="Slides that do not say: microns per pixel.")] = None,
    encoder: Annotated[str | None, typer.Option("--encoder", help="Slides: patch encoder, a name or a file.")] = None,
    format: Annotated[
        Literal["auto", "dicom"] | None,
        typer.Option("--format", help="Slides: DICOM report and picture of DICOM slides (auto), or of all (dicom)."),
    ] = None,
    adapt: Annotated[
        bool, typer.Option("--adapt", help="Raw data: adapt the network to each slice by its own samples; slow.")
    ] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Hash finished work again before it is trusted.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try items again that failed before.")] = False,
    deidentify: Annotated[
        bool,
        typer.Option(
            "--deidentify", help="Work on a copy without identifiers, OUT/deidentified; see medseq deidentify."
        ),
    ] = False,
    new_run: Annotated[
        bool, typer.Option("--new-run", help="Move what another model left in OUTPUT to OUTPUT/previous.")
    ] = False,
    show_identifiers: Annotated[
        bool, typer.Option("--show-identifiers", help="Print names and ids instead of hashes. Mind who reads it.")
    ] = False,
    trust_packages: Annotated[
        list[str] | None, typer.Option("--trust-package", help="Package whose classes a bundle may use; repeatable.")
    ] = None,
    include: Annotated[
        list[str] | None, typer.Option("--include", help="Pattern of wanted files, such as '*.nii.gz'; repeatable.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", help="Pattern of files to leave out; repeatable.")
    ] = None,
    priority: Annotated[
        list[str] | None, typer.Option("--priority", help="Pattern of files to compute first; repeatable.")
    ] = None,
    shard: Annotated[
        str | None, typer.Option("--shard", help="i/n: one of n parts, for a job array; medseq run merge joins them.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Compute nothing: tell what would be done, with time and memory.")
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=0, help="Processes that compute; 0: this one. Default: by the machine."),
    ] = None,
    max_memory: Annotated[
        str | None, typer.Option("--max-memory", help="What all workers together may take, such as 8G.")
    ] = None,
    item_timeout: Annotated[
        float | None, typer.Option("--item-timeout", min=0.1, help="Seconds that an item may take.")
    ] = None,
    retries: Annotated[int, typer.Option("--retries", min=0, help="Further attempts where one may help.")] = 2,
    engine: Annotated[
        Literal["local", "ray"], typer.Option("--engine", help="Processes of this machine, or a Ray cluster.")
    ] = "local",
    ray_address: Annotated[str | None, typer.Option("--ray-address", help="Of the Ray cluster.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    json_log: JsonLog = False,
) -> None:
    """Run a model over a file or folder: medseq predict ct-denoise IN OUT. Ends with OUT/report.html.

    Exit code 0: all done; 2: nothing to do; 3: some inputs failed (the report says which and why); 130: interrupted.
    """
    from medseq.inference.run import predict_folder

    with progress_bar("predict", quiet=quiet or as_json) as progress:
        summary = predict_folder(
            bundle,
            input,
            output,
            device=device,
            names=names,
            modality=modality,
            strength=strength,
            tile=tile,
            overlap=overlap,
            batch=batch,
            difference=difference,
            # Not False: a bundle may ask for it by itself.
            uncertainty=uncertainty or None,
            resample=resample,
            sens=sens,
            sens_maps=sens_maps,
            fft=fft,
            virtual_coils=virtual_coils,
            orientations=orientations,
            attribution=attribution,
            top=top,
            mpp=mpp,
            encoder=encoder,
            format=format,
            adapt=adapt,
            verify=verify,
            retry_failed=retry_failed,
            new_run=new_run,
            show_identifiers=show_identifiers,
            trust_packages=tuple(trust_packages or ()),
            include=tuple(include or ()),
            exclude=tuple(exclude or ()),
            priority=tuple(priority or ()),
            shard=shard,
            dry_run=dry_run,
            workers=workers,
            max_memory=max_memory,
            item_timeout=item_timeout,
            retries=retries,
            engine=engine,
            ray_address=ray_address,
            deidentify=deidentify,
            progress=progress,
        )
    if summary.plan is not None:
        _print_plan(summary.plan, as_json)
    elif as_json:
        print_json(
            {
                "counts": summary.counts,
                "exit_code": summary.exit_code,
                "processed": summary.processed,
                "report": summary.report_path,
            }
        )
    else:
        words = ", ".join(f"{count} {state}" for state, count in summary.counts.items() if count) or "nothing found"
        say(words, quiet=quiet and summary.exit_code == 0)
        if summary.report_path:
            say(f"report: {summary.report_path}", quiet=quiet)
    raise typer.Exit(summary.exit_code)


def _print_plan(plan: "RunPlan", as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        print_json({"plan": asdict(plan)})
        return
    for line in plan.lines():
        typer.echo(line)
