"""The command line: each verb parses, calls one function of `app`, and prints. Nothing heavy is imported here."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

import finetune
from finetune.errors import EXIT_FAILED, FinetuneError
from finetune.recipe.machine import reach_own_programs
from finetune.terminal import print_bug, print_error, print_rows, say

EXIT_INTERRUPTED = 130
EXIT_CODES = (
    "Exit codes: 0 done; 1 failed; 2 a mistake in the recipe, the data or the command line; "
    "75 stopped on request after a checkpoint, the same command goes on; 130 interrupted."
)

# Plain help, not rich's boxes: they cost more time than all of our own start-up.
_SETTINGS: dict[str, Any] = {
    "rich_markup_mode": None,
    "no_args_is_help": True,
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"], "max_content_width": 100},
}


def _examples(*lines: str, after: str = "") -> str:
    """The end of a help page; its first mark keeps the lines apart."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines) + after


app = typer.Typer(
    name="finetune",
    epilog=_examples(
        "finetune recipes list                      what ships",
        "finetune train quickstart                  train a shipped recipe",
        "finetune recipes new text_classification --data my.csv --output my.yaml",
        "finetune train my.yaml --processes 8       train your own",
        "finetune COMMAND --help                    each command, with examples",
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
    """Run the command line and end the process with one of the documented exit codes."""
    reach_own_programs()
    args, show_traceback = _own_options(list(sys.argv[1:] if argv is None else argv))
    try:
        typer.main.get_command(app)(args=args, prog_name="finetune")
    except SystemExit as end:  # typer ends Ctrl-C this way, without a word
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
        print_bug(error, show_traceback=show_traceback)
        sys.exit(EXIT_FAILED)


def _own_options(args: list[str]) -> tuple[list[str], bool]:
    """Takes out what may stand anywhere: --traceback, and the --local_rank that deepspeed's launcher adds."""
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
    """Names of shipped recipes, YAML files and folders that begin so."""
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
        metavar="RECIPE", help="A YAML file, or the name of a shipped recipe.", autocompletion=_complete_recipe
    ),
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder: runs/<recipe>/<run id>.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the recipe; may be given again."),
]
Processes = Annotated[
    int | None, typer.Option("--processes", min=1, metavar="N", help="Ranks; default: what the recipe says.")
]
Checkpoint = Annotated[str, typer.Option("--checkpoint", metavar="NAME", help="best, latest, or a checkpoint's name.")]


@app.callback()
def finetune_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and end.")
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where in the code an error was raised; may stand anywhere.")
    ] = False,
) -> None:
    """One recipe file becomes a tuned, evaluated, logged model, on one process or a thousand."""


@app.command(
    short_help="Train a recipe and leave a run folder.",
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
        Path | None, typer.Option("--run-dir", metavar="DIR", help="Run folder; default: runs/<recipe>/<run id>.")
    ] = None,
    sets: Sets = None,
    resume: Annotated[
        str,
        typer.Option(
            "--resume",
            metavar="auto|never|PATH",
            help="auto: go on where this recipe's last unfinished run stopped; never: begin anew; or a checkpoint.",
        ),
    ] = "auto",
    restarts: Annotated[
        int, typer.Option("--restarts", min=0, metavar="N", help="Go on by itself so often after a rank died.")
    ] = 0,
) -> None:
    """Train a recipe: launch the processes, train, evaluate, and leave a run folder.

    Run again after a stop, the same command goes on at the exact next step. Inside accelerate launch, torchrun,
    deepspeed or srun it works as one of their workers.
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
    """Evaluate a checkpoint of a run on one of its splits or on other data. Needs the run folder alone.

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
    short_help="Write a run's model for from_pretrained.",
    epilog=_examples(
        "finetune export runs/my/20260101-120000 --output my-model",
        "finetune export runs/my/20260101-120000 --output my-model --checkpoint latest --merge",
    ),
)
def export(
    run: RunFolder,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to write; it must be new.")],
    checkpoint: Checkpoint = "best",
    merge: Annotated[
        bool, typer.Option("--merge", help="Merge an adapter into the weights it was trained on.")
    ] = False,
) -> None:
    """Write the model of a run as a folder that transformers' from_pretrained loads (adapters: peft's)."""
    from finetune.app import export as verb

    verb.export(run, output=output, checkpoint=checkpoint, merge=merge)


@app.command(
    short_help="Write report.html of a run.",
    epilog=_examples("finetune report runs/my/20260101-120000", "finetune report runs/my/20260101-120000 --open"),
)
def report(
    run: RunFolder,
    open_: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Write report.html anew from what a run has logged, and say where it is."""
    from finetune.app import report as verb

    path = verb.report(run)
    typer.echo(path)
    if open_:
        typer.launch(str(path))


@app.command(
    short_help="Prove that layouts do not change a recipe's numbers.",
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
        bool, typer.Option("--full", help="The model at its real size, with its weights; default: a small one.")
    ] = False,
    steps: Annotated[int, typer.Option("--steps", min=1, metavar="N", help="Steps under each layout.")] = 3,
    processes: Annotated[int, typer.Option("--processes", min=2, max=8, metavar="N", help="Ranks, at most.")] = 2,
) -> None:
    """Train a few steps of a recipe on one rank and several, with accumulation, at ZeRO 0 to 3, and in plain PyTorch in
    float64: losses, gradient norms, weights and metrics must agree. Runs on the CPU, with dropout off.
    """
    from finetune.app.dispatch import run_verb

    run_verb("verify", recipe=recipe, sets=list(sets or ()), full=full, steps=steps, processes=processes)


@app.command(
    short_help="What this machine has, and what is missing.",
    epilog=_examples("finetune doctor", "finetune doctor --build"),
)
def doctor(
    build: Annotated[
        bool, typer.Option("--build", help="Build DeepSpeed's C++ now, once, rather than in the first training.")
    ] = False,
) -> None:
    """What this machine has, what is missing, and how to get it. Asks no network."""
    from finetune.app import doctor as verb

    raise typer.Exit(verb.doctor(build=build))


@recipes.command("list", epilog=_examples("finetune recipes list", "finetune train NAME"))
def list_recipes() -> None:
    """The recipes that ship."""
    from finetune.app import recipes as verb

    rows = verb.list_recipes()
    print_rows(("recipe", "task", "what it does"), rows, empty="no recipes ship with this installation")


@recipes.command(
    "show",
    short_help="Show a recipe: written, resolved, or explained.",
    epilog=_examples(
        "finetune recipes show quickstart",
        "finetune recipes show my.yaml --explain --set training.epochs=5",
        "finetune recipes show my.yaml --resolved > resolved.yaml",
    ),
)
def show_recipe(
    recipe: RecipeName,
    explain: Annotated[bool, typer.Option("--explain", help="Every resolved value, and where it came from.")] = False,
    resolved: Annotated[bool, typer.Option("--resolved", help="The recipe as YAML with every value explicit.")] = False,
    sets: Sets = None,
) -> None:
    """Show a recipe: as written; or resolved or explained, and then with its faults, as `train` would tell them."""
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
    short_help="The JSON Schema of recipes, for editors.",
    epilog=_examples("finetune recipes schema --output recipe.schema.json"),
)
def show_schema(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write it there instead of printing it.")
    ] = None,
) -> None:
    """The JSON Schema of recipes, from which editors complete and check keys.

    A recipe names it in its first line: # yaml-language-server: $schema=recipe.schema.json
    """
    from finetune.app import recipes as verb

    if output is None:
        typer.echo(verb.schema_text(), nl=False)
    else:
        typer.echo(f"wrote {verb.write_schema(output)}")


@recipes.command(
    "new",
    short_help="Write a first recipe for your own data.",
    epilog=_examples(
        "finetune recipes new text_classification --data reviews.csv --output reviews.yaml",
        "finetune recipes new causal_lm --data chats.jsonl --model Qwen/Qwen2.5-0.5B-Instruct",
    ),
)
def new_recipe(
    task: Annotated[str, typer.Argument(metavar="TASK", help="What is learnt.", autocompletion=_complete_task)],
    data: Annotated[str, typer.Option("--data", metavar="SOURCE", help="Training data: file, folder or hub id.")] = "",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where to write it; default: TASK.yaml.")
    ] = None,
    model: Annotated[str, typer.Option("--model", metavar="SOURCE", help="Model to tune: hub id or folder.")] = "",
) -> None:
    """Write a first recipe for your own data, its columns guessed from the file. Never overwrites."""
    from finetune.app import recipes as verb

    path = verb.new_recipe(task, data=data, output=output, model=model)
    typer.echo(f"wrote {path}\nnext: read it, then  finetune train {path}")
