"""The command `medseq`: one file per command, and nothing heavy before a command runs.

Exit codes: 0 ok, 1 a bug, 2 usage or nothing found, 3 some items failed, 130 interrupted.
"""

import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from medseq import __version__
from medseq.cli import (
    benchmark,
    bundle,
    check,
    convert,
    data,
    deidentify,
    demo,
    doctor,
    export,
    fit,
    info,
    pacs,
    predict,
    review,
    run,
    test_set,
    validate,
    wsi,
    zoo,
)
from medseq.cli.console import VERBOSE, say
from medseq.errors import MedseqError

__all__ = ["app", "main"]


class MedseqGroup(TyperGroup):
    """Turns the errors that medseq raises on purpose into one readable line and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except MedseqError as error:
            if ctx.meta.get(VERBOSE):
                say("".join(traceback.format_exception(error)))
            say(f"medseq: {error}")
            raise typer.Exit(2) from None


app = typer.Typer(
    cls=MedseqGroup,
    no_args_is_help=True,
    add_completion=False,
    # Tracebacks with local variables would print what the variables hold: pixels, paths, identifiers.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Restore, reconstruct and classify medical images with linear-time sequence models. Research use only.",
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"medseq {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


USE, MAKE, LOOK = "Use a model", "Make a model", "Look around"
app.command("predict", rich_help_panel=USE)(predict.predict)
app.add_typer(run.app, name="run", rich_help_panel=USE)
app.add_typer(review.app, name="review", rich_help_panel=USE)
app.command("check", rich_help_panel=USE)(check.check)
app.command("deidentify", rich_help_panel=USE)(deidentify.deidentify)
app.add_typer(pacs.app, name="pacs", rich_help_panel=USE)
app.command("demo", rich_help_panel=USE)(demo.demo)
# What stands after the task's name belongs to the training library.
THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True}
app.command("fit", rich_help_panel=MAKE, context_settings=THROUGH)(fit.fit)
app.command("validate", rich_help_panel=MAKE, context_settings=THROUGH)(validate.validate)
app.command("test", rich_help_panel=MAKE, context_settings=THROUGH)(test_set.score_test_set)
app.command("benchmark", rich_help_panel=MAKE)(benchmark.benchmark)
app.command("info", rich_help_panel=LOOK)(info.info)
app.command("bundle", rich_help_panel=MAKE)(bundle.bundle)
# More pairs may follow the one of --config.
app.command("convert", rich_help_panel=MAKE, context_settings={"allow_extra_args": True})(convert.convert)
app.command("export", rich_help_panel=MAKE)(export.export)
app.command("zoo", rich_help_panel=LOOK)(zoo.zoo)
app.command("doctor", rich_help_panel=LOOK)(doctor.doctor)
app.add_typer(wsi.app, name="wsi", rich_help_panel=USE)
app.add_typer(data.app, name="data", rich_help_panel=LOOK)


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="medseq")


if __name__ == "__main__":
    main()
