"""Conversations: messages → text by the tokenizer's chat template, and what of it is supervised.

What the assistant wrote is told by the template's `{% generation %}` markers. A template without
them is rendered up to before and up to after each of the assistant's turns: if each rendering is
how the next one begins, their difference is the turn; if not, nothing can be told and the row is
refused. Both are stretches of characters, so no token is cut where a turn ends.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from gradacc_dist.data.rows import Place, Row, described
from gradacc_dist.data.shapes import MESSAGES, Shape, Supervise, text_of
from gradacc_dist.errors import DataError

ASSISTANT = "assistant"
# As transformers recognises it.
MARKER = re.compile(r"\{\%-?\s*generation\s*-?\%\}")
TELL_TURNS = (
    "put {% generation %} ... {% endgeneration %} around what the assistant writes in the chat "
    "template (data.chat_template), or set data.supervise: all"
)

Message: TypeAlias = dict[str, Any]
Span: TypeAlias = tuple[int, int]


@dataclass(frozen=True)
class Rendered:
    """A conversation as text. `spans`: [start, end) in characters of what is supervised."""

    text: str
    spans: tuple[Span, ...]


def use_template(tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Give the tokenizer the chat template in a file, so that the exported model has it too."""
    try:
        tokenizer.chat_template = path.expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(
            f"data.chat_template: {path} cannot be read ({reason}); give the path of a Jinja file "
            f"(seen from {Path.cwd()})"
        ) from error


def is_conversation(row: Row, shape: Shape) -> bool:
    """Whether the row is made of messages rather than of plain text."""
    return (
        shape is MESSAGES or isinstance(row["prompt"], list) or isinstance(row["completion"], list)
    )


@dataclass(frozen=True)
class Chat:
    """Renders the conversations of one run."""

    tokenizer: PreTrainedTokenizerBase
    supervise: Supervise

    def rendered(self, row: Row, shape: Shape, place: Place) -> Rendered:
        """A row of messages, or of a prompt and a completion made of messages.

        Raises DataError for messages that are none, and what the template refuses.
        """
        messages, first = self._messages(row, shape, place)
        tools = _tools(row, place)
        if self.supervise == "all":
            text, _ = self._render(messages, tools, place)
            return Rendered(text, ((0, len(text)),))
        if MARKER.search(self._template(tools, place)):
            text, spans = self._render(messages, tools, place, is_marked=True)
            start = self._end_of(messages[:first], text, tools, place) if first else 0
            return Rendered(text, tuple(span for span in spans if span[0] >= start))
        if not self.tokenizer.is_fast:
            raise DataError(
                f"{place}: this tokenizer is written in Python and does not tell which characters "
                "a token stands for, so turns cannot be told apart; use a fast tokenizer "
                "(model.tokenizer), or set data.supervise: all"
            )
        return self._by_turns(messages, first, tools, place)

    def _messages(self, row: Row, shape: Shape, place: Place) -> tuple[list[Message], int]:
        """The messages, and the index of the first one that may be supervised."""
        if shape is not MESSAGES:
            prompt = messages_of(row["prompt"], "prompt", place)
            completion = messages_of(row["completion"], "completion", place)
            first = len(prompt) if self.supervise in ("auto", "completion") else 0
            return [*prompt, *completion], first
        messages = messages_of(row["messages"], "messages", place)
        if self.supervise != "completion":
            return messages, 0
        if messages[-1]["role"] != ASSISTANT:
            raise DataError(
                f"{place}: data.supervise: completion takes the loss over the last message, which "
                f"must be the {ASSISTANT}'s, not the {messages[-1]['role']}'s; remove that "
                "message, or set data.supervise: assistant"
            )
        return messages, len(messages) - 1

    def _by_turns(self, messages: list[Message], first: int, tools: Any, place: Place) -> Rendered:
        whole, _ = self._render(messages, tools, place)
        spans: list[Span] = []
        for index, message in enumerate(messages):
            if message["role"] != ASSISTANT or index < first:
                continue
            if index == 0:
                raise DataError(
                    f"{place}: the {ASSISTANT} speaks first, and no rendering ends before; "
                    f"begin with another role, or {TELL_TURNS}"
                )
            before, _ = self._render(messages[:index], tools, place, is_prompt=True)
            after, _ = self._render(messages[: index + 1], tools, place)
            if not (after.startswith(before) and whole.startswith(after)):
                raise DataError(
                    f"{place}: the chat template renders message {index + 1} in another way once "
                    f"more follows, so what the {ASSISTANT} wrote cannot be told; {TELL_TURNS}"
                )
            spans.append((len(before), _turn_end(before, after, message)))
        return Rendered(whole, tuple(spans))

    def _end_of(self, messages: list[Message], whole: str, tools: Any, place: Place) -> int:
        """Where the first messages end in the rendering of all."""
        text, _ = self._render(messages, tools, place)
        if not whole.startswith(text):
            raise DataError(
                f"{place}: the chat template renders the prompt in another way once the completion "
                "follows, so where that begins cannot be told; set data.supervise: assistant"
            )
        return len(text)

    def _render(
        self,
        messages: Sequence[Message],
        tools: Any,
        place: Place,
        *,
        is_prompt: bool = False,
        is_marked: bool = False,
    ) -> tuple[str, list[Span]]:
        """What `apply_chat_template` renders, and the stretches that it marks."""
        try:
            # Called directly because apply_chat_template returns the text without the stretches.
            texts, spans = render_jinja_template(
                conversations=[messages],
                tools=tools,
                chat_template=self._template(tools, place),
                return_assistant_tokens_mask=is_marked,
                add_generation_prompt=is_prompt,
                **self._special_tokens,
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise DataError(
                f"{place}: the chat template refuses these messages "
                f"({' '.join(str(error).split())}); change the row, or give another template as "
                "data.chat_template"
            ) from error
        return texts[0], spans[0] if is_marked else []

    def _template(self, tools: Any, place: Place) -> str:
        """Of several templates, transformers' choice: one may be for tools alone."""
        if self.tokenizer.chat_template is None:
            raise DataError(
                f"{place}: messages need a chat template, and the tokenizer has none; set "
                "data.chat_template to a Jinja file, or model.tokenizer to a tokenizer for chat"
            )
        try:
            return str(self.tokenizer.get_chat_template(None, tools))
        except ValueError as error:
            raise DataError(f"{place}: {error}; set data.chat_template to a Jinja file") from error

    @cached_property
    def _special_tokens(self) -> dict[str, Any]:
        return dict(self.tokenizer.special_tokens_map)


def _turn_end(before: str, after: str, message: Message) -> int:
    """Where the assistant's turn ends: at its end mark, not at the blanks that set off the next.

    Without such a mark the blanks are what ends the turn.
    """
    turn = after[len(before) :].rstrip()
    content = str(message.get("content") or "").rstrip()
    is_marked = turn and not (content and turn.endswith(content))
    return len(before) + len(turn) if is_marked else len(after)


def messages_of(value: Any, column: str, place: Place) -> list[Message]:
    """The messages in a column, checked. Raises DataError naming the message."""
    if not isinstance(value, list):
        raise DataError(
            f"{place}: {column} is {described(value)}, but must be a list of messages "
            '{"role": ..., "content": ...}'
        )
    if not value:
        raise DataError(
            f"{place}: {column} is empty, but needs at least one message; remove the row"
        )
    return [_message(message, f"{column}[{index}]", place) for index, message in enumerate(value)]


def _message(message: Any, what: str, place: Place) -> Message:
    if not isinstance(message, dict):
        raise DataError(
            f'{place}: {what} is {described(message)}, but must be {{"role": ..., "content": ...}}'
        )
    # Parquet and Arrow write null where a message has no such key.
    given = {name: value for name, value in message.items() if value is not None}
    if "role" not in given:
        known = "from and value" if "from" in given and "value" in given else ", ".join(given)
        remedy = "; rename from to role and value to content" if known == "from and value" else ""
        raise DataError(
            f"{place}: {what} has no role, only {known or 'nulls'}; needs role and content{remedy}"
        )
    text_of(given["role"], f"{what}.role", place)
    if "content" in given:
        given["content"] = _content(given["content"], f"{what}.content", place)
    elif not given.get("tool_calls"):
        raise DataError(
            f"{place}: {what} has no content, only {', '.join(given)}; a message needs role and "
            'content (or tool_calls); write "" where nothing is said'
        )
    return given


def _content(content: Any, what: str, place: Place) -> str:
    """The text of a message; parts of text, as multimodal datasets write it, are joined."""
    if not isinstance(content, list):
        return text_of(content, what, place)
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise DataError(
                f"{place}: {what}[{index}] is {described(kind or part)}, but only parts of type "
                'text can be learned: {"type": "text", "text": ...}; remove it, or the row'
            )
        texts.append(text_of(part.get("text"), f"{what}[{index}].text", place))
    return "".join(texts)


def _tools(row: Row, place: Place) -> Any:
    """The tools that the template is told of, from the column of this name."""
    tools = row.get("tools")
    if not tools:
        return None
    if isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools):
        return tools
    raise DataError(
        f"{place}: tools is {described(tools)}, but must be a list of JSON schemas, each a mapping"
    )
