"""Chat templates in the manner of known model families, for tests; and a tokenizer that knows their marks."""

from __future__ import annotations

from typing import Any

MARKS = ["<|begin|>", "<|head|>", "<|/head|>", "<|eot|>", "<|eom|>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]"]

SIMPLE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Qwen 2.5's manner: a line break before a call only if there are words; tool results in a user turn.
QWEN = (
    "{%- if tools %}{{- '<|im_start|>system\\n' }}{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}"
    "{%- endif %}{{- '# Tools' }}{%- for tool in tools %}{{- '\\n' + tool | tojson }}{%- endfor %}{{- '<|im_end|>\\n' }}"
    "{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{%- endif %}"
    "{%- for message in messages %}"
    "{%- if message.role == 'user' or (message.role == 'system' and not loop.first) or (message.role == 'assistant' and "
    "not message.tool_calls) %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- elif message.role == 'assistant' %}{{- '<|im_start|>assistant' }}"
    "{%- if message.content %}{{- '\\n' + message.content }}{%- endif %}"
    "{%- for call in message.tool_calls %}{%- if call.function %}{%- set call = call.function %}{%- endif %}"
    '{{- \'\\n<tool_call>\\n{"name": "\' + call.name + \'", "arguments": \' }}{{- call.arguments | tojson }}'
    "{{- '}\\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\\n' }}"
    "{%- elif message.role == 'tool' %}{{- '<|im_start|>user\\n<tool_response>\\n' + message.content + "
    "'\\n</tool_response><|im_end|>\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
# Qwen 3's manner: thoughts behind the last question alone, an empty one where there is none.
QWEN_3 = (
    "{%- set ns = namespace(last=0) %}{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}"
    "{%- endif %}{%- endfor %}{%- for m in messages %}"
    "{%- if m.role == 'tool' %}{{- '<|im_start|>user\\n<tool_response>\\n' + m.content + '\\n</tool_response><|im_end|>\\n' }}"
    "{%- elif m.role != 'assistant' %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    "{%- else %}{%- set thought = m.reasoning_content or '' %}{%- set words = m.content %}"
    "{%- if '</think>' in words and not thought %}{%- set thought = words.split('</think>')[0].split('<think>')[-1] %}"
    "{%- set words = words.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
    "{{- '<|im_start|>assistant\\n' }}{%- if loop.index0 > ns.last and (loop.last or thought) %}"
    "{{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}{%- endif %}{{- words }}"
    "{%- for call in m.tool_calls or [] %}{%- if not loop.first or words %}{{- '\\n' }}{%- endif %}"
    '{{- \'<tool_call>\\n{"name": "\' + call.function.name + \'", "arguments": \' }}'
    "{%- if call.function.arguments is string %}{{- call.function.arguments }}{%- else %}"
    "{{- call.function.arguments | tojson }}{%- endif %}{{- '}\\n</tool_call>' }}{%- endfor %}"
    "{{- '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
# Llama 3.1's manner: one call at a time, ended by another mark; words beside a call are not printed.
LLAMA_3 = (
    "{{- '<|begin|>' }}{%- if tools %}{{- '<|head|>system<|/head|>\\n\\n' }}{%- for t in tools %}{{- t | tojson }}{%- endfor %}"
    "{{- '<|eot|>' }}{%- endif %}{%- for m in messages %}{%- if 'tool_calls' in m %}"
    "{%- if m.tool_calls | length != 1 %}{{- raise_exception('This model only supports single tool-calls at once!') }}"
    "{%- endif %}{%- set call = m.tool_calls[0].function %}{{- '<|head|>assistant<|/head|>\\n\\n' }}"
    "{{- '{\"name\": \"' + call.name + '\", \"parameters\": ' }}{{- call.arguments | tojson }}{{- '}<|eom|>' }}"
    "{%- elif m.role == 'tool' %}{{- '<|head|>ipython<|/head|>\\n\\n' + m.content | tojson + '<|eot|>' }}"
    "{%- else %}{{- '<|head|>' + m.role + '<|/head|>\\n\\n' + m.content | trim + '<|eot|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|head|>assistant<|/head|>\\n\\n' }}{%- endif %}"
)
# Mistral's manner: no header before a reply, identifiers of nine characters, tools before the last question.
MISTRAL = (
    "{{- '<|begin|>' }}{%- for m in messages %}{%- if m.role == 'user' %}"
    "{%- if tools and m == messages | selectattr('role', 'equalto', 'user') | list | last %}{{- '[AVAILABLE_TOOLS]' }}"
    "{{- tools | tojson + '[/AVAILABLE_TOOLS]' }}{%- endif %}{{- '[INST] ' + m.content + '[/INST]' }}"
    "{%- elif m.tool_calls is defined and m.tool_calls %}{{- '[TOOL_CALLS] [' }}{%- for call in m.tool_calls %}"
    "{%- if call.id is not defined or call.id | length != 9 %}{{- raise_exception('Tool call IDs have nine characters') }}"
    "{%- endif %}{{- call.function | tojson }}{{- ', ' if not loop.last else '' }}{%- endfor %}{{- ']' + eos_token }}"
    "{%- elif m.role == 'assistant' %}{{- ' ' + m.content + eos_token }}"
    "{%- elif m.role == 'tool' %}{{- '[TOOL_RESULTS] ' + m.content + '[/TOOL_RESULTS]' }}{%- endif %}{%- endfor %}"
)
# DeepSeek R1's manner: arguments as text, thoughts cut away, <think> in the generation prompt, calls if content is none.
DEEPSEEK = (
    "{{- '<|begin|>' }}{%- for m in messages %}{%- if m.role == 'user' %}{{- '<|User|>' + m.content }}"
    "{%- elif m.role == 'assistant' and m.tool_calls %}{{- '<|Assistant|>' }}{%- for call in m.tool_calls %}"
    "{{- '<call>' + call.function.name + '\\n```json\\n' + call.function.arguments + '\\n```</call>' }}{%- endfor %}"
    "{{- eos_token }}{%- elif m.role == 'assistant' %}{%- set words = m.content %}{%- if '</think>' in words %}"
    "{%- set words = words.split('</think>')[-1] %}{%- endif %}{{- '<|Assistant|>' + words + eos_token }}"
    "{%- elif m.role == 'tool' %}{{- '<out>' + m.content + '</out>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|Assistant|><think>\\n' }}{%- endif %}"
)
# The same, but a turn that calls a tool is one whose content is none: with "" the call would not be printed.
DEEPSEEK_NONE = DEEPSEEK.replace(
    "m.role == 'assistant' and m.tool_calls", "m.role == 'assistant' and m.content is none"
).replace(
    "{{- eos_token }}{%- elif m.role == 'assistant' %}",
    "{{- eos_token }}{%- elif m.role == 'assistant' and m.content is not none %}",
)
# Hermes' manner, with marks around the assistant's part.
HERMES_MARKED = (
    "{%- for tool in tools or [] %}{{- tool | tojson + '\\n' }}{%- endfor %}{%- for m in messages %}"
    "{{- '<|im_start|>' + m.role }}{%- if m.role == 'assistant' %}{%- generation %}{{- '\\n' + m.content }}"
    "{%- for call in m.tool_calls or [] %}{{- '\\n' if m.content or not loop.first else '' }}"
    '{{- \'<tool_call>\\n{"name": "\' + call.function.name + \'", "arguments": \' }}'
    "{{- call.function.arguments | tojson }}{{- '}\\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>' }}{%- endgeneration %}"
    "{{- '\\n' }}{%- else %}{{- '\\n' + m.content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant' }}{%- endif %}"
)


def make_tokenizer(template: str | None, *, bos: str | None = None) -> Any:
    """A byte-level tokenizer of a few hundred entries with the marks of all templates here."""
    from transformers import PreTrainedTokenizerFast

    from finetune.models.tokenizer import _train

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_train(320, ["Hello there, good day to you. Two words? Be brief. [INST] hi [/INST]"]),
        pad_token="<|pad|>",
        eos_token="<|endoftext|>",
        bos_token=bos,
        additional_special_tokens=["<|im_start|>", "<|im_end|>", *MARKS],
    )
    tokenizer.chat_template = template
    return tokenizer
