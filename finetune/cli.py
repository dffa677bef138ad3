"""The command line. Each command parses its arguments, calls one function of `app` and prints. No heavy imports."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

import finetune
from finetune.errors import EXIT_FAILED, FinetuneError, UserError
from finetune.recipe.machine import reach_own_programs
from finetune.terminal import print_bug, print_error, print_rows, say

EXIT_INTERRUPTED = 130
EXIT_CODES = (
    "Exit codes: 0 success; 1 failure; 2 an error in the recipe, the data or the command line; "
    "75 stopped on request after saving a checkpoint, run the same command to resume; 130 interrupted."
)

# Plain help without rich's boxes, which take longer than the rest of the start-up.
_SETTINGS: dict[str, Any] = {
    "rich_markup_mode": None,
    "no_args_is_help": True,
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"], "max_content_width": 100},
}


def _examples(*lines: str, after: str = "") -> str:
    """The examples at the end of a help page. Its first character keeps click from rewrapping the lines."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines) + after


app = typer.Typer(
    name="finetune",
    epilog=_examples(
        "finetune recipes list                      list the shipped recipes",
        "finetune train quickstart                  train a shipped recipe",
        "finetune recipes new text_classification --data my.csv --output my.yaml",
        "finetune train my.yaml --processes 8       train your own recipe",
        "finetune COMMAND --help                    help for a command, with examples",
        after=f"\n\n{EXIT_CODES}",
    ),
    **_SETTINGS,
)
recipes = typer.Typer(
    name="recipes",
    help="List, show and write recipes.",
    epilog=_examples("finetune recipes list", "finetune recipes show quickstart --explain"),
    **_SETTINGS,
)
app.add_typer(recipes)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit with one of the documented exit codes."""
    reach_own_programs()
    args, show_traceback = _own_options(list(sys.argv[1:] if argv is None else argv))
    try:
        typer.main.get_command(app)(args=args, prog_name="finetune")
    except SystemExit as end:  # typer exits this way on Ctrl-C, without a message
        if end.code == EXIT_INTERRUPTED:
            say("interrupted")
        raise
    except FinetuneError as error:
        if show_traceback:
            import traceback

            traceback.print_exc()
        print_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        say("interrupted")
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        if isinstance(error, OSError) and (fault := _fault_of_path(error, args)) and not show_traceback:
            print_error(fault)
            sys.exit(fault.exit_code)
        print_bug(error, show_traceback=show_traceback)
        sys.exit(EXIT_FAILED)


def _fault_of_path(error: OSError, args: Sequence[str]) -> UserError | None:
    """What is wrong with a path of the command line, such as a folder that is a file; None if the error is about none."""
    if not isinstance(error.filename, str):
        return None
    path = Path(error.filename).absolute()
    for given in (Path(arg).absolute() for arg in args if not arg.startswith("-") and arg != args[0]):
        if path == given or given in path.parents or (path in given.parents and path.is_file()):
            return UserError(f"cannot be used: {error.strerror}", where=error.filename)
    return None


def _own_options(args: list[str]) -> tuple[list[str], bool]:
    """Removes options accepted anywhere: --traceback, and the --local_rank that DeepSpeed's launcher adds."""
    kept: list[str] = []
    show_traceback = False
    rest = iter(args)
    for arg in rest:
        name, equals, _ = arg.partition("=")
        if name in ("--local_rank", "--local-rank"):
            if not equals:
                next(rest, None)
        elif arg == "--traceback":
            show_traceback = True
        else:
            kept.append(arg)
    return kept, show_traceback


def _complete_recipe(incomplete: str) -> list[str]:
    """Shipped recipes, YAML files and folders that start with the typed text."""
    from finetune.recipe.shelf import list_recipes

    names = [recipe.name for recipe in list_recipes() if recipe.name.startswith(incomplete)]
    typed = Path(incomplete)
    folder, prefix = (typed, "") if incomplete.endswith("/") else (typed.parent, typed.name)
    if folder.is_dir():
        for item in sorted(folder.iterdir()):
            if item.name.startswith(prefix) and not item.name.startswith("."):
                if item.is_dir():
                    names.append(f"{item}/")
                elif item.suffix in (".yaml", ".yml"):
                    names.append(str(item))
    return list(dict.fromkeys(names))


def _complete_task(incomplete: str) -> list[str]:
    from finetune.tasks import CARDS

    return [name for name in CARDS if name.startswith(incomplete)]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"finetune {finetune.__version__}")
        raise typer.Exit


RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="Path to a YAML file, or the name of a shipped recipe.", autocompletion=_complete_recipe
    ),
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder: runs/<recipe>/<run id>.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key. Can be repeated."),
]
Processes = Annotated[
    int | None, typer.Option("--processes", min=1, metavar="N", help="Number of ranks. Default: from the recipe.")
]
Checkpoint = Annotated[
    str, typer.Option("--checkpoint", metavar="NAME", help="best, latest, or the name of a checkpoint.")
]


@app.callback()
def finetune_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show the traceback of an error. Accepted anywhere on the command line.")
    ] = False,
) -> None:
    """Turn one recipe file into a fine-tuned, evaluated and logged model, on one process or a thousand."""


@app.command(
    short_help="Train a recipe and write a run folder.",
    epilog=_examples(
        "finetune train quickstart",
        "finetune train my.yaml --processes 4 --set training.learning_rate=3e-5 --set training.epochs=5",
        "finetune train my.yaml --set parallel.deepspeed=zero3 --resume never",
        "accelerate launch --num_processes 8 -m finetune train my.yaml",
    ),
)
def train(
    recipe: RecipeName,
    processes: Processes = None,
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", metavar="DIR", help="Run folder. Default: runs/<recipe>/<run id>.")
    ] = None,
    sets: Sets = None,
    resume: Annotated[
        str,
        typer.Option(
            "--resume",
            metavar="auto|never|PATH",
            help="auto: resume the last unfinished run of this recipe; never: start a new run; or the path of a checkpoint.",
        ),
    ] = "auto",
    restarts: Annotated[
        int,
        typer.Option(
            "--restarts", min=0, metavar="N", help="Restart automatically up to N times after a rank failure."
        ),
    ] = 0,
) -> None:
    """Train a recipe: launch the processes, train, evaluate, and write a run folder.

    After a stop, the same command resumes at the exact next step. Inside accelerate launch, torchrun, deepspeed or
    srun it runs as one of their workers.
    """
    from finetune.app.dispatch import run_verb

    run_verb(
        "train",
        recipe=recipe,
        sets=list(sets or ()),
        processes=processes,
        run_dir=run_dir,
        resume=resume,
        restarts=restarts,
    )


@app.command(
    short_help="Read, split and encode the data of a recipe.",
    epilog=_examples(
        "finetune prepare my.yaml",
        "finetune prepare my.yaml --workers 4 --set data.on_bad_row=skip",
    ),
)
def prepare(
    recipe: RecipeName,
    sets: Sets = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, metavar="N", help="Worker processes. Default: one for each core.")
    ] = None,
) -> None:
    """Prepare the data of a recipe now, without a GPU: read the files, hold out rows, encode every row, report bad ones.

    `finetune train` does the same before it starts the ranks, and finds what was prepared. An interrupted preparation
    continues where it was.
    """
    from finetune.app import prepare as verb

    verb.prepare(recipe=recipe, sets=list(sets or ()), workers=workers)


@app.command(
    short_help="List or remove prepared data.",
    epilog=_examples("finetune cache", "finetune cache --prune --older-than 7", "finetune cache --prune"),
)
def cache(
    prune: Annotated[bool, typer.Option("--prune", help="Remove entries instead of listing them.")] = False,
    older_than: Annotated[
        float | None,
        typer.Option("--older-than", min=0, metavar="DAYS", help="Only entries that were not used for this many days."),
    ] = None,
) -> None:
    """List the cache of prepared data: what each entry was made from, its size and last use; or remove entries.

    Entries that a running training uses are never removed. What is removed is prepared again when it is needed.
    """
    from finetune.app import cache as verb

    verb.cache(prune=prune, older_than=older_than)


@app.command(
    short_help="Evaluate a checkpoint of a run.",
    epilog=_examples(
        "finetune evaluate runs/quickstart/20260101-120000",
        "finetune evaluate runs/my/20260101-120000 --checkpoint latest --split test",
        "finetune evaluate runs/my/20260101-120000 --data other.csv",
    ),
)
def evaluate(
    run: RunFolder,
    checkpoint: Checkpoint = "best",
    split: Annotated[str, typer.Option("--split", metavar="NAME", help="validation, test or train.")] = "validation",
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", metavar="FILE", help="Evaluate this data in place of a split; can be given several times."
        ),
    ] = None,
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="Folder below evaluations/; default: checkpoint and data.")
    ] = "",
    sets: Sets = None,
    processes: Processes = None,
) -> None:
    """Evaluate a checkpoint of a run, on one of its splits or on other data. Needs only the run folder.

    Figures and predictions go to evaluations/NAME of the run folder and never over those of the training.
    """
    from finetune.app.dispatch import run_verb

    run_verb(
        "evaluate",
        run=run,
        checkpoint=checkpoint,
        split=split,
        data=list(data or ()),
        name=name,
        sets=list(sets or ()),
        processes=processes,
    )


@app.command(
    short_help="Export the model of a run for from_pretrained.",
    epilog=_examples(
        "finetune export runs/my/20260101-120000 --output my-model",
        "finetune export runs/my/20260101-120000 --output my-model --checkpoint latest --merge",
    ),
)
def export(
    run: RunFolder,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Output folder. Must be new or empty.")],
    checkpoint: Checkpoint = "best",
    merge: Annotated[bool, typer.Option("--merge", help="Merge the adapter into its base weights.")] = False,
) -> None:
    """Export the model of a run to a folder that from_pretrained of transformers (adapters: of peft) can load."""
    from finetune.app import export as verb

    verb.export(run, output=output, checkpoint=checkpoint, merge=merge)


@app.command(
    short_help="Write the report of a run.",
    epilog=_examples("finetune report runs/my/20260101-120000", "finetune report runs/my/20260101-120000 --open"),
)
def report(
    run: RunFolder,
    open_: Annotated[bool, typer.Option("--open", help="Open the report in the browser.")] = False,
) -> None:
    """Write report.html again from the logs of a run, and print its path."""
    from finetune.app import report as verb

    path = verb.report(run)
    typer.echo(path)
    if open_:
        typer.launch(str(path))


@app.command(
    short_help="Check that all layouts give the same numbers.",
    epilog=_examples(
        "finetune verify quickstart",
        "finetune verify my.yaml --steps 5 --set model.config.num_hidden_layers=3",
        "finetune verify my.yaml --full",
    ),
)
def verify(
    recipe: RecipeName,
    sets: Sets = None,
    full: Annotated[
        bool, typer.Option("--full", help="Use the model at full size with its weights. Default: a small one.")
    ] = False,
    steps: Annotated[int, typer.Option("--steps", min=1, metavar="N", help="Steps per layout.")] = 3,
    processes: Annotated[
        int, typer.Option("--processes", min=2, max=8, metavar="N", help="Maximum number of ranks.")
    ] = 2,
) -> None:
    """Train a few steps of a recipe on one and on several ranks, with gradient accumulation, with ZeRO 0 to 3, and in
    plain PyTorch in float64. Losses, gradient norms, weights and metrics must agree. Runs on the CPU without dropout.
    """
    from finetune.app.dispatch import run_verb

    run_verb("verify", recipe=recipe, sets=list(sets or ()), full=full, steps=steps, processes=processes)


@app.command(
    short_help="Show the data as the model will see it, and find problems.",
    epilog=_examples(
        "finetune inspect my.yaml",
        "finetune inspect my.yaml --row 17 --split validation",
        "finetune inspect my.yaml --html data.html --strict --set options.max_length=512",
    ),
)
def inspect(
    recipe: RecipeName,
    sets: Sets = None,
    split: Annotated[
        str, typer.Option("--split", metavar="NAME", help="Split whose rows are shown: train, validation or test.")
    ] = "train",
    rows: Annotated[
        int, typer.Option("--rows", min=0, metavar="N", help="Show N first, N random and N longest rows.")
    ] = 2,
    row: Annotated[
        int | None, typer.Option("--row", min=0, metavar="ID", help="Show only the row with this id, in full.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write the report as one HTML file.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 if there is an error or a warning among the findings.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Show what the model will see: tokens with their speakers, those that are learned, cuts, packs, augmented images.

    Reports lengths, labels and characters, and finds rows that teach nothing, leaks between splits, duplicates,
    broken images and more. Encodes the data as train does, into the same cache, and starts no ranks.
    """
    from finetune.app import inspect as verb

    raise typer.Exit(
        verb.inspect(
            recipe=recipe,
            sets=list(sets or ()),
            split=split,
            rows=rows,
            row=row,
            html=html,
            strict=strict,
            as_json=as_json,
        )
    )


@app.command(
    short_help="Check this machine and report what is missing.",
    epilog=_examples("finetune doctor", "finetune doctor --build"),
)
def doctor(
    build: Annotated[
        bool, typer.Option("--build", help="Build DeepSpeed's C++ extensions now instead of during the first training.")
    ] = False,
) -> None:
    """Report what this machine has, what is missing, and how to install it. Needs no network."""
    from finetune.app import doctor as verb

    raise typer.Exit(verb.doctor(build=build))


@recipes.command("list", epilog=_examples("finetune recipes list", "finetune train NAME"))
def list_recipes() -> None:
    """List the shipped recipes."""
    from finetune.app import recipes as verb

    rows = verb.list_recipes()
    print_rows(("recipe", "task", "what it does"), rows, empty="this installation has no shipped recipes")


@recipes.command(
    "show",
    short_help="Show a recipe as written, resolved, or explained.",
    epilog=_examples(
        "finetune recipes show quickstart",
        "finetune recipes show my.yaml --explain --set training.epochs=5",
        "finetune recipes show my.yaml --resolved > resolved.yaml",
    ),
)
def show_recipe(
    recipe: RecipeName,
    explain: Annotated[bool, typer.Option("--explain", help="Show every resolved value and its origin.")] = False,
    resolved: Annotated[bool, typer.Option("--resolved", help="Show it as YAML with every value explicit.")] = False,
    sets: Sets = None,
) -> None:
    """Show a recipe as written. Resolved or explained, it is also checked, as `train` would check it."""
    from finetune.app import recipes as verb

    if not (explain or resolved or sets):
        typer.echo(verb.read_recipe(recipe), nl=False)
        return
    loaded = verb.resolve_recipe(recipe, list(sets or ()))
    if explain:
        print_rows(("key", "value", "from"), loaded.explain())
    else:
        typer.echo(loaded.dump_yaml(), nl=False)
    for warning in loaded.warnings:
        say(f"warning: {warning}")


@recipes.command(
    "schema",
    short_help="Print the JSON Schema of recipes, for editors.",
    epilog=_examples("finetune recipes schema --output recipe.schema.json"),
)
def show_schema(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write to this file instead of printing.")
    ] = None,
) -> None:
    """Print the JSON Schema of recipes, which lets editors complete and check keys.

    A recipe refers to it in its first line: # yaml-language-server: $schema=recipe.schema.json
    """
    from finetune.app import recipes as verb

    if output is None:
        typer.echo(verb.schema_text(), nl=False)
    else:
        typer.echo(f"wrote {verb.write_schema(output)}")


@recipes.command(
    "new",
    short_help="Write a starter recipe for your own data.",
    epilog=_examples(
        "finetune recipes new text_classification --data reviews.csv --output reviews.yaml",
        "finetune recipes new causal_lm --data chats.jsonl --model Qwen/Qwen2.5-0.5B-Instruct",
    ),
)
def new_recipe(
    task: Annotated[str, typer.Argument(metavar="TASK", help="Task to train for.", autocompletion=_complete_task)],
    data: Annotated[str, typer.Option("--data", metavar="SOURCE", help="Training data: file, folder or hub id.")] = "",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="File to write. Default: TASK.yaml.")
    ] = None,
    model: Annotated[str, typer.Option("--model", metavar="SOURCE", help="Model to fine-tune: hub id or folder.")] = "",
) -> None:
    """Write a starter recipe for your own data, with columns guessed from the file. Never overwrites a file."""
    from finetune.app import recipes as verb

    path = verb.new_recipe(task, data=data, output=output, model=model)
    typer.echo(f"wrote {path}\nNext: review it, then run  finetune train {path}")
