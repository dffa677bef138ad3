"""`finetune dashboard`: a W&B workspace for a run, or for the runs below a folder."""

from __future__ import annotations

import json
from pathlib import Path

from finetune.errors import UserError
from finetune.terminal import print_line
from finetune.tracking.atomic_files import check_file, disk_errors, publish_text
from finetune.tracking.dashboard import build_workspace, check_installed, read_logged, save_workspace, specification
from finetune.tracking.run_summary import find_runs
from finetune.tracking.wandb_run import has_key
from finetune.units import format_number


def dashboard(target: Path, spec: Path | None, name: str) -> None:
    """Save the workspace with W&B; with `spec`, write its specification to that file instead, without a network.

    target: a run folder, or a folder with runs below it. Raises: UserError if it has none, or without an API key.
    """
    check_installed()
    if spec is not None:
        check_file(spec, '"displayName": ')
    single = (target / "run.json").is_file()
    folders = [target] if single else [run.path for run in find_runs(target) if run.status != "damaged"]
    if not folders:
        raise UserError("no run folder, and no runs below it", where=str(target), remedy="List runs: finetune runs.")
    logged = read_logged(folders)
    if not logged.figures:
        raise UserError("nothing has been logged yet", where=str(target), remedy="Run it again after the first step.")
    whole_group = not single and bool(logged.group)
    usual = f"{logged.group}: all runs" if whole_group else f"{logged.task}: {format_number(len(folders), 'run')}"
    name = name or (f"{logged.group or logged.task}: {folders[0].resolve().name}" if single else usual)
    entity = logged.entity if spec is not None else _entity(logged.entity)
    workspace = build_workspace(logged, name=name, entity=entity, whole_group=whole_group)
    for section in workspace.sections:
        print_line(f"  {section.name}: {format_number(len(section.panels), 'panel')}")
    if spec is not None:
        with disk_errors(spec, "Free some space, or give another file."):
            publish_text(spec, json.dumps(specification(workspace), indent=2, ensure_ascii=False) + "\n")
        print_line(f"specification  {spec} (not sent to W&B: how it looks there was not checked)")
        return
    print_line(f"workspace      {save_workspace(workspace)}")
    for path in logged.not_uploaded:
        print_line(f"note: {path} is not on the server: its panels are empty until `wandb sync` uploads it")


def _entity(configured: str) -> str:
    """The team or user to save for. Raises: UserError without an API key, or if W&B cannot be asked whose it is."""
    import wandb

    if not has_key(wandb):
        raise UserError(
            "W&B has no API key, neither in WANDB_API_KEY nor in netrc",
            where="finetune dashboard",
            remedy="`wandb login` stores one. --spec FILE writes the specification without a server.",
        )
    if configured:
        return configured
    try:
        return str(wandb.Api(timeout=20).default_entity or "")
    except Exception as error:
        raise UserError(
            f"W&B cannot be asked for the account ({type(error).__name__})",
            where="finetune dashboard",
            remedy="Check the network and the key, or set tracking.entity. --spec FILE needs neither.",
        ) from None
