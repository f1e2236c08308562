"""Chat templates of three families, with and without markers around what the assistant writes."""

GENERATION, END = "{% generation %}", "{% endgeneration %}"

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}<g>{{ m['content'] + '<|im_end|>' }}</g>{{ '\n' }}"
    "{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

LLAMA3 = (
    "{{ '<|begin_of_text|>' }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
    "{% if m['role'] == 'assistant' %}<g>{{ m['content'] | trim + '<|eot_id|>' }}</g>"
    "{% else %}{{ m['content'] | trim + '<|eot_id|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

MISTRAL = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] + '\n\n' %}"
    "{% set rest = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
    "{{ '<s>' }}{% for m in rest %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + (system if loop.first else '') + m['content'] + ' [/INST]' }}"
    "{% else %}<g>{{ ' ' + m['content'] + '</s>' }}</g>{% endif %}{% endfor %}"
)

FAMILIES = {"ChatML": CHATML, "Llama 3": LLAMA3, "Mistral": MISTRAL}
SPECIAL = [
    *("<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>"),
    *("<|end_header_id|>", "<|eot_id|>", "<s>", "</s>", "[INST]", "[/INST]"),
]

# Earlier turns are shown shortened, as templates do that drop an assistant's thinking.
STRIPS_THINKING = (
    "{% for m in messages %}{{ m['role'] + ': ' }}"
    "{{ m['content'] if loop.last else m['content'].split('</think>')[-1] }}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)

# Renders prompt and completion as they are: the same tokens as plain columns.
PLAIN = (
    "{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}{{ m['content'] + eos_token }}"
    "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
)


def marked(template: str) -> str:
    return template.replace("<g>", GENERATION).replace("</g>", END)


def unmarked(template: str) -> str:
    return template.replace("<g>", "").replace("</g>", "")
