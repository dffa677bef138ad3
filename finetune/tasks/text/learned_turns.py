"""Which turns of a conversation are learned: the assistant's that the row does not exclude and that say something."""

from __future__ import annotations

from collections.abc import Sequence

from finetune.data.bad_rows import BadRow
from finetune.tasks.text.chat import EMPTY
from finetune.tasks.text.conversations import Conversation, Turns, is_empty
from finetune.tasks.text.tool_calls import Tool


def to_learn(turns: Turns, tools: Sequence[Tool] = (), *, first: int = 0, whole: bool = False) -> Conversation:
    """A conversation of which the assistant's turns are learned: those from position `first` on that the row does not
    exclude and that say something. What follows the last of them is left out, unless the conversation is learned whole.

    Raises: BadRow if there is none.
    """
    messages, marks, notices = turns.messages, turns.marks, list(turns.notices)
    replies = [index for index in range(first, len(messages)) if messages[index]["role"] == "assistant"]
    if not replies:
        raise BadRow("no assistant turn to learn from")
    wanted = [index for index in replies if marks[index] is not False]
    learned = [index for index in wanted if not is_empty(messages[index])]
    if not learned:
        raise BadRow(EMPTY if wanted else "no turn is left to learn: the row excludes every reply (weight: 0)")
    if len(learned) < len(wanted):
        notices.append("an empty reply is not learned: it would teach the model to end immediately")
    if whole:
        if len(wanted) < len(replies):
            notices.append("weight: 0 has no effect: options.train_on: all learns all tokens")
        return Conversation(messages, frozenset(learned), tools, tuple(notices))
    behind = range(learned[-1] + 1, len(messages))
    if any(messages[index]["role"] != "assistant" for index in behind):
        notices.append("turns after the last reply are left out: nothing in them is learned")
    return Conversation(messages[: learned[-1] + 1], frozenset(learned), tools, tuple(notices))
