"""`medseq data`: the data sets that medseq knows, and real examples that install from package registries."""

import typer

from medseq.cli.console import AsJson, Verbose, print_json, table

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Data sets that medseq knows: public ones to fetch, examples to install.")


@app.command("list")
def list_sets(as_json: AsJson = False, verbose: Verbose = False) -> None:
    """List the data manifests: what each set is, where it comes from and its licence."""
    import yaml

    from medseq.cli.share import share_folder

    manifests = {}
    for path in sorted(share_folder("data_manifests").glob("*.yaml")):
        manifests[path.stem] = yaml.safe_load(path.read_text(encoding="utf-8"))
    if as_json:
        print_json(manifests)
        return
    rows = [[name, str(entry.get("title", "")), str(entry.get("licence", ""))] for name, entry in manifests.items()]
    table(["manifest", "what", "licence"], rows)
