"""A replica of `finetune serve`: one copy of the model, asked through a socket. `python -m finetune.app.workers.serve FD {}`"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from finetune.app.asked_model import AskedModel, open_model
from finetune.data.images import MAX_PIXELS, allow_pixels
from finetune.ending import end_process
from finetune.errors import EXIT_FAILED, UserError
from finetune.inference.pieces.loading import LoadingAnswerer
from finetune.inference.pieces.options import PieceOptions
from finetune.inference.serving.link import serve_link
from finetune.inference.serving.messages import BatchRun, ModelFacts
from finetune.inference.serving.prompts import PromptEncoder
from finetune.inference.serving.replica import Replica
from finetune.inference.serving.served_model import ServedModel
from finetune.inference.serving.splitting import ServedPieces
from finetune.inference.serving.warm_up import warm_up
from finetune.inference.serving.writer import Writer
from finetune.models.device import uses_cuda
from finetune.models.kernel_choices import choose_kernels
from finetune.models.placement import Placement
from finetune.tasks.batch import RecordOptions
from finetune.terminal import print_bug, say

OPTIONS: Mapping[str, RecordOptions] = {
    "top_k": RecordOptions(top_k=2),
    "threshold": RecordOptions(threshold=0.5),
}


def work(sock: socket.socket, given: Mapping[str, Any]) -> int:
    """Answer until the front process closes the connection; returns an exit code."""

    async def open_replica(ran: Callable[[BatchRun], None], broken: Callable[[BaseException], None]) -> Replica:
        gpus = given["gpus"] if uses_cuda() else 0  # which this process sees
        allow_pixels(max(given["pixels"], MAX_PIXELS))
        asked = open_model(
            given["source"],
            checkpoint=given["checkpoint"],
            task=given["task"],
            precision=given["precision"],
            quantization=given["quantization"],
            device="cuda:0" if gpus else "cpu",
            placement=Placement(layers=tuple(range(gpus))) if gpus > 1 else None,
            trust_remote_code=given["trust_remote_code"],
            notify=say,
        )
        choose_kernels(asked.plan.precision)
        model = serve_asked(asked, name=given["name"], pixels=given["pixels"], pieces=given["pieces"])
        if model.facts.writes:
            return Replica(model, writer=open_writer(asked, broken), ran=ran, broken=broken)
        await asyncio.get_running_loop().run_in_executor(None, warm_up, model)
        return Replica(model, ran=ran, broken=broken)

    return asyncio.run(serve_link(sock, open_replica))


def serve_asked(
    asked: AskedModel, *, name: str = "", pixels: int, pieces: Mapping[str, Any] | None = None
) -> ServedModel:
    """The model as a replica holds it. name: "" for the recipe's. pieces: see PieceOptions.

    Raises: UserError for pieces that do not fit the task or the model.
    """
    options = PieceOptions(**(pieces or {}))
    facts, answerer = model_facts(asked, name), asked.batch_answerer()
    if not options.asked:
        return ServedModel(asked.task, asked.artifacts, answerer, facts, pixels)
    cut = ServedPieces(asked.task, asked.artifacts, options, pixels=pixels)
    facts = replace(facts, notes=(*facts.notes, options.describe()))
    return ServedModel(asked.task, asked.artifacts, LoadingAnswerer(answerer, cut), facts, pixels, cut)


def open_writer(asked: AskedModel, broken: Callable[[BaseException], None] = lambda error: None) -> Writer:
    """What writes the texts of a model that writes. broken: see Writer."""
    generator = asked.text_generator(beams=asked.generation_settings().beams, notify=say)
    return Writer(
        generator,
        PromptEncoder(asked.artifacts),
        lambda token: str(asked.artifacts.processor.decode([token])),
        settings=asked.generation_settings,
        broken=broken,
    )


def model_facts(asked: AskedModel, name: str) -> ModelFacts:
    """What the front process needs to know."""
    card, artifacts, recipe = asked.task.card.for_asking(), asked.artifacts, asked.plan.recipe
    writes = asked.writes_text
    length = artifacts.settings.get("max_length", artifacts.settings.get("max_source_length"))
    return ModelFacts(
        name=name or recipe.name,
        task=card.name,
        title=card.title,
        roles={role: about for role, about in card.rows.columns.items() if role not in card.rows.targets},
        columns=dict(recipe.data.columns),
        image=card.rows.image_role,
        line_role=card.rows.role_of_lines(artifacts.options),
        targets=tuple({name for role in card.rows.targets for name in (role, recipe.data.columns.get(role, role))}),
        labels=tuple(artifacts.labels),
        options=tuple(option for option in OPTIONS if _takes(asked, OPTIONS[option])),
        writes=writes,
        chats=writes and "source" not in card.rows.columns and bool(artifacts.processor.chat_template),
        max_length=length if isinstance(length, int) else None,
        device=str(asked.device),
        notes=asked.notes,
    )


def _takes(asked: AskedModel, options: RecordOptions) -> bool:
    try:
        asked.task.record_fields(asked.artifacts, options)
    except UserError:
        return False
    return True


def main() -> None:
    """Of the process. It ignores Ctrl-C: the front process ends it when everything is answered."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sock = socket.socket(fileno=int(sys.argv[1]))
    try:
        code = work(sock, json.loads(sys.argv[2]))
    except Exception as error:
        print_bug(error, show_traceback=True)
        code = EXIT_FAILED
    end_process(code)  # threads of a model that broke may never end


if __name__ == "__main__":
    main()
