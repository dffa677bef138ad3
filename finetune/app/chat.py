"""`finetune chat`: a conversation with a model in the terminal, in one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from finetune.app.asked_model import open_model
from finetune.app.chat_options import ChatOptions
from finetune.app.chat_screen import ChatScreen
from finetune.data.bad_rows import BadRow
from finetune.errors import EXIT_FAILED
from finetune.inference.answering import RowError
from finetune.inference.generation.conversation import Conversation, Prompt
from finetune.inference.generation.generator import TextGenerator
from finetune.inference.generation.requests import GenerationSettings, Reply, Request
from finetune.models.device import share_cores
from finetune.models.kernel_choices import choose_kernels
from finetune.terminal import phase, say

HELP = (
    "/reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops a reply and else leaves, "
    "a backslash at the end of a line continues it in the next"
)
NEW_TOKENS = 512  # of a reply, where the command does not say


def chat(options: ChatOptions) -> int:
    """Talk until the end of the input; the exit code. See `open_model` for `model`, GenerationSettings for the rest.

    Raises: UserError.
    """
    changes: dict[str, Any] = {
        "new_tokens": NEW_TOKENS if options.new_tokens is None else options.new_tokens,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "top_k": options.top_k,
        "repetition_penalty": options.repetition_penalty,
        "seed": options.seed,
        "stops": options.stops,
    }
    GenerationSettings(
        **{name: value for name, value in changes.items() if value is not None}
    )  # before a model is loaded
    screen = ChatScreen()
    share_cores(1)
    trusted = options.trust_remote_code
    with phase(f"loading {options.model}", say):
        asked = open_model(options.model, checkpoint=options.checkpoint, trust_remote_code=trusted, notify=say)
    choose_kernels(asked.plan.precision)
    settings = asked.generation_settings(**changes, beams=1)
    generator = asked.text_generator(slots=1, notify=screen.note)
    try:
        conversation = Conversation(asked.task, asked.artifacts, options.system, prompt_limit(generator, settings))
        screen.note(f"{asked.name}: {HELP}" if screen.interactive else asked.name)
        with screen.keyboard:
            return Chat(screen, conversation, generator, settings).run()
    finally:
        generator.close()


def prompt_limit(generator: TextGenerator, settings: GenerationSettings) -> int:
    """Tokens of a prompt beside which a reply fits, or half of the model's length where the reply is longer than that."""
    most = generator.most_tokens
    return most and max(most - settings.new_tokens, most // 2)


class Chat:
    """Turns of a conversation, one after the other."""

    def __init__(
        self, screen: ChatScreen, conversation: Conversation, generator: TextGenerator, settings: GenerationSettings
    ) -> None:
        self._screen, self._conversation = screen, conversation
        self._generator, self._settings = generator, settings
        self._turn = 0
        self._failures = 0
        self._left_out = 0
        self._told: set[str] = set()

    def run(self) -> int:
        """Until the input ends; the exit code: of a pipe, 1 if a turn got no reply. Raises: KeyboardInterrupt at a prompt."""
        while True:
            try:
                text = self._screen.ask()
            except EOFError:
                break
            except KeyboardInterrupt:
                if self._screen.interactive:
                    print()  # behind the prompt
                raise
            if text.strip() in ("/exit", "/quit"):
                return self._exit_code
            if text.startswith("/"):
                self._command(text.strip())
            elif text.strip():
                with self._screen.keyboard.silent():
                    self._answer(text)
        if self._screen.interactive:
            print()
        return self._exit_code

    @property
    def _exit_code(self) -> int:
        return EXIT_FAILED if self._failures and not self._screen.interactive else 0

    def _command(self, name: str) -> None:
        commands: dict[str, Callable[[], None]] = {"/reset": self._reset, "/help": lambda: self._screen.note(HELP)}
        if name in commands:
            commands[name]()
        else:
            self._screen.note(
                f"there is no command {name}; a turn that begins with a slash begins with a space here. {HELP}"
            )

    def _reset(self) -> None:
        self._conversation.reset()
        self._left_out = 0
        self._screen.note("the conversation is forgotten")

    def _answer(self, text: str) -> None:
        request: Request | None = None
        try:
            prompt = self._conversation.ask(text.removeprefix(" ") if text.startswith(" /") else text)
            self._tell_prompt(prompt)
            request = self._generator.submit(prompt.ids, self._settings, row=self._turn, streams=True)
            self._turn += 1
            for piece in request.pieces():
                self._screen.write(piece)
        except BadRow as bad:
            self._fail(str(bad))
            return
        except KeyboardInterrupt:
            if not self._screen.interactive:
                raise
            if request is None:
                self._conversation.withdraw()
                self._screen.note("stopped")
                return
            self._generator.cancel(request)
        outcome = request.wait()
        self._screen.end()
        if isinstance(outcome, RowError):
            self._conversation.withdraw()
            self._fail(outcome.message)
            return
        self._conversation.reply(outcome.text)
        self._tell_end(outcome)

    def _tell_prompt(self, prompt: Prompt) -> None:
        """What is not as the user may expect, each time it is new."""
        if prompt.left_out > self._left_out:
            self._screen.note(
                f"the first {prompt.left_out} turns are left out: the conversation is longer than the model reads"
            )
        self._left_out = prompt.left_out
        for notice in prompt.notices:
            if notice not in self._told:
                self._told.add(notice)
                self._screen.note(notice)

    def _tell_end(self, reply: Reply) -> None:
        if reply.finish_reason == "cancelled":
            self._screen.note("stopped")
        elif reply.finish_reason == "length":
            reason = "--max-new-tokens" if len(reply.tokens) >= self._settings.new_tokens else "the length of the model"
            self._screen.note(f"cut after {len(reply.tokens)} tokens: {reason}")
        elif not reply.text.strip():
            self._screen.note("the reply is empty")

    def _fail(self, reason: str) -> None:
        self._failures += 1
        self._screen.note(f"no reply: {reason}")
