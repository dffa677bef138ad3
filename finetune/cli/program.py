"""The program that commands are added to, and how their help pages look."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

import finetune
from finetune.distributed.env import from_environ
from finetune.distributed.said_once import LAUNCHERS, said_by_another
from finetune.errors import FinetuneError, UserError

EXIT_CODES = (
    "Exit codes: 0 success; 1 failure; 2 an error in the recipe, the data or the command line; "
    "75 stopped on request after saving a checkpoint, run the same command to resume; 130 interrupted."
)

# Commands that write one thing, listen at one port or talk to one person: not for the ranks of a launch.
ONE_PROCESS = ("export", "serve", "chat", "report", "dashboard")

# Plain help without rich's boxes, which take longer than the rest of the start-up.
SETTINGS: dict[str, Any] = {
    "rich_markup_mode": None,
    "no_args_is_help": True,
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"], "max_content_width": 100},
}


def examples(*lines: str, after: str = "") -> str:
    """The examples at the end of a help page. Its first character keeps click from rewrapping the lines."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines) + after


@contextmanager
def _usage_errors_once() -> Iterator[None]:
    """Typer shows what a command line gets wrong; of the ranks of a launch, which have the same one, a single rank does."""
    try:
        yield
    except TyperException as error:
        if said_by_another(error.format_message()):
            raise typer.Exit(error.exit_code) from None
        raise


class _Program(TyperGroup):
    """`finetune`, with its commands."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _usage_errors_once():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with _usage_errors_once():
            return super().invoke(ctx)


app = typer.Typer(
    name="finetune",
    cls=_Program,
    epilog=examples(
        "finetune recipes list                      list the shipped recipes",
        "finetune train quickstart                  train a shipped recipe",
        "finetune recipes new text_classification --data my.csv --output my.yaml",
        "finetune train my.yaml --processes 8       train your own recipe",
        "finetune COMMAND --help                    help for a command, with examples",
        after=f"\n\n{EXIT_CODES}",
    ),
    **SETTINGS,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"finetune {finetune.__version__}")
        raise typer.Exit


def _refuse_ranks(command: str | None) -> None:
    """Raises: UserError for a command of one process of which a launcher starts several, which would disturb each other."""
    if command not in ONE_PROCESS:
        return
    try:
        env = from_environ()
    except FinetuneError:  # left over from another launch, and none of the business of a process that is alone
        return
    if env is not None and env.launcher in LAUNCHERS and env.world_size > 1:
        raise UserError(
            f"this is a command of one process, and {env.launcher} started {env.world_size:,} of them",
            where=f"finetune {command}",
            remedy=f"Run it without {env.launcher}.",
        )


@app.callback()
def finetune_command(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show the traceback of an error. Accepted anywhere on the command line.")
    ] = False,
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code",
            help="Trust the run or model folder that is named: run Python code that its model brings, and follow links out "
            "of it. Accepted anywhere on the command line.",
        ),
    ] = False,
) -> None:
    """Turn one recipe file into a fine-tuned, evaluated and logged model, on one process or a thousand."""
    _refuse_ranks(ctx.invoked_subcommand)
