"""``empir leaderboard``: its commands ``add``, ``check``, ``table``, ``html`` and ``submit``."""

from __future__ import annotations

from pathlib import Path

import click

from empir_cli.group import CommandGroup
from empir_cli.options import DATA_DIR

_PATH = click.Path(path_type=Path)
_TREE = click.option(
    "--tree",
    type=_PATH,
    default=Path("leaderboard"),
    show_default=True,
    help="Folder with model_info (entries) and runs (records).",
)


@click.group(cls=CommandGroup)
def leaderboard() -> None:
    """Create leaderboard entries from run records; check, show and submit them."""


@leaderboard.command()
@click.argument("model")
@click.option("--record", "records", type=_PATH, multiple=True, required=True, help="Run record (repeatable).")
@click.option("--audit", type=_PATH, help="Report of `empir audit`.")
@click.option("--overhead", type=_PATH, help="Costs of the model: the file of `empir overhead --out`.")
@click.option("--paper", type=_PATH, help="Paper and architecture (TOML), for a model this package has none for.")
@_TREE
def add(
    model: str, records: tuple[Path, ...], audit: Path | None, overhead: Path | None, paper: Path | None, tree: Path
) -> None:
    """Create the entry of MODEL from run records, and add entry and records to the tree.

    One record must hold standard AutoAttack on the full official test set, at the board's eps. For a board of
    corruptions it must hold all of them, on the published images. Records of fewer images do not make an entry; they
    are kept among the runs.
    """
    from empir_plugin.leaderboard.add import Files
    from empir_plugin.leaderboard.add import add as add_entry
    from empir_plugin.leaderboard.tree import Tree

    place = add_entry(Tree(tree), model, Files(records, audit, overhead, paper))
    click.echo(f"Entry: {place.entry}")
    click.echo(f"Sources: {place.evidence}")
    if audit is None and place.board.threat is not None:
        click.echo("No --audit was given: `unreliable` reflects AutoAttack's flags only.", err=True)


@leaderboard.command()
@_TREE
def check(tree: Path) -> None:
    """Recompute every entry from its sources and compare; exit with code 1 if anything differs.

    Entries of others, which have no sources here, are not recomputed. What is unusual in them is printed as a note and
    does not change the exit code.
    """
    from empir_plugin.leaderboard.check import check as check_tree
    from empir_plugin.leaderboard.check import notes
    from empir_plugin.leaderboard.tree import Tree

    for note in notes(Tree(tree)):
        click.echo(f"note: {note}")
    problems = check_tree(Tree(tree))
    for problem in problems:
        click.echo(str(problem))
    if problems:
        raise click.exceptions.Exit(1)
    places = list(Tree(tree).places())
    own = sum(place.is_own for place in places)
    agreement = "1 entry agrees with its sources." if own == 1 else f"{own} entries agree with their sources."
    click.echo(agreement if own else f"{tree} has no entries {'of its own' if places else 'yet'}.")
    if others := len(places) - own:
        click.echo(f"Entries of others, which have no sources here and were not recomputed: {others}.")


@leaderboard.command()
@_TREE
def table(tree: Path) -> None:
    """Print the entries as Markdown tables, one for each board, ranked as RobustBench ranks.

    Entries of others are ranked, too. Files that cannot be ranked are named below the tables.
    """
    from empir_plugin.leaderboard.tree import Tree, markdown_tables

    click.echo(markdown_tables(Tree(tree)), nl=False)


@leaderboard.command()
@_TREE
@click.option("--out", type=_PATH, required=True, help="File to write.")
def html(tree: Path, out: Path) -> None:
    """Write the entries as a single HTML page that works offline: tables, charts and run records.

    A tree that `empir leaderboard check` rejects makes no page. Entries of others, which have no records here, are
    shown in a ranking of the whole board.
    """
    from empir_plugin.leaderboard.page.render import write_page
    from empir_plugin.leaderboard.tree import Tree

    write_page(Tree(tree), out)
    click.echo(f"Page: {out}")


@leaderboard.command()
@click.argument("name")
@click.option("--out", type=_PATH, required=True, help="Folder to write to.")
@click.option("--images", type=_PATH, help="Adversarial images (safetensors), for an external evaluation.")
@DATA_DIR
@click.option("--code-url", help="URL of the code, for the issue.")
@_TREE
def submit(name: str, out: Path, images: Path | None, data_dir: Path | None, code_url: str | None, tree: Path) -> None:
    """Write what RobustBench asks for: the entry of NAME, the text of the issue, and a row for the model zoo.

    NAME is a model (empir-cifar), a stem (Sen2020EMPIR), or board and stem (cifar10/Linf/Sen2020EMPIR). With --images,
    the tensor and the text of an external evaluation are written as well; with --data-dir, the images' norms are
    measured again. For a board that RobustBench does not have, such as mnist/Linf, only the entry and an issue that
    proposes the board are written.
    """
    from empir_plugin.leaderboard.submit import CODE_URL, find
    from empir_plugin.leaderboard.submit import submit as write_submission
    from empir_plugin.leaderboard.tree import Tree

    entry = find(Tree(tree), name)
    for path in write_submission(entry, out, images=images, data_dir=data_dir, code_url=code_url or CODE_URL):
        click.echo(str(path))
    if not entry.place.board.in_robustbench:
        click.echo(
            f"RobustBench has no board for {entry.place.board}: new-model.md proposes one, or keep the entry in a tree "
            "of your own. Nothing is written for its model zoo or for an external evaluation, which need a board.",
            err=True,
        )
