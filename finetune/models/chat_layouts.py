"""The chat templates of our own: ChatML for tokenizers trained on the data, headings for those without a template.

Both have a place for everything that a conversation can hold: system turns anywhere, tool schemas, tool calls, tool
results and thoughts, all as text. What stands between generation and endgeneration is the assistant's reply, including
the token that ends it. They are saved with the tokenizer, so that whoever uses the model asks it as it was taught.
"""

from __future__ import annotations

# What the assistant says in one turn: thought, words, calls as <tool_call> and JSON on lines of their own.
_REPLY = (
    "{% if message['reasoning_content'] %}{{ '<think>\\n' + message['reasoning_content'] + '\\n</think>\\n\\n' }}{% endif %}"
    "{{ message['content'] or '' }}"
    "{% if message['tool_calls'] %}{% for call in message['tool_calls'] %}{% set called = call['function'] or call %}"
    "{{ '\\n' if message['content'] or not loop.first }}"
    "{{ '<tool_call>\\n{\"name\": ' + called['name'] | tojson + ', \"arguments\": ' }}"
    "{{ called['arguments'] if called['arguments'] is string else called['arguments'] | tojson }}"
    "{{ '}\\n</tool_call>' }}{% endfor %}{% endif %}"
)
_TOOLS = (
    "{{ 'You can call these tools:\\n<tools>\\n' }}{% for tool in tools %}{{ tool | tojson + '\\n' }}{% endfor %}"
    '{{ \'</tools>\\nTo call one, write its name and arguments:\\n<tool_call>\\n{"name": ..., "arguments": {...}}'
    "\\n</tool_call>' }}"
)

CHATML = (
    "{% if tools %}{{ '<|im_start|>system\\n' }}"
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + '\\n\\n' }}{% endif %}"
    + _TOOLS
    + "{{ '<|im_end|>\\n' }}{% endif %}"
    "{% for message in messages %}{% set role = message['role'] %}"
    "{% if role == 'assistant' %}{{ '<|im_start|>assistant\\n' }}{% generation %}"
    + _REPLY
    + "{{ '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
    "{% elif role == 'tool' and message['name'] %}"
    "{{ '<|im_start|>tool ' + message['name'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% elif not (tools and loop.first and role == 'system') %}"
    "{{ '<|im_start|>' + role + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# The layout of Stanford Alpaca, each reply ended by the end-of-text token.
PLAIN = (
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + '\\n\\n' }}"
    "{% else %}{{ 'Below is an instruction that describes a task. Write a response that appropriately completes the "
    "request.\\n\\n' }}{% endif %}"
    "{% if tools %}" + _TOOLS + "{{ '\\n\\n' }}{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '### Response:\\n' }}{% generation %}"
    + _REPLY
    + "{{ eos_token }}{% endgeneration %}{{ '\\n\\n' if not loop.last }}"
    "{% elif message['role'] == 'system' %}{% if not loop.first %}"
    "{{ '### System:\\n' + message['content'] + '\\n\\n' }}{% endif %}"
    "{% elif message['role'] == 'tool' %}"
    "{{ '### Tool result' + (' of ' + message['name'] if message['name'] else '') + ':\\n' }}"
    "{{ message['content'] + '\\n\\n' }}"
    "{% else %}{{ '### Instruction:\\n' + message['content'] + '\\n\\n' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
)
