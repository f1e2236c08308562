"""Whether an example teaches the model to stop: its supervised part ends with end-of-text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from gradacc_dist.items import IGNORED_LABEL


@dataclass(frozen=True)
class Ending:
    """The rule for one tokenizer."""

    tokenizer: PreTrainedTokenizerBase
    _is_blank: dict[int, bool] = field(default_factory=dict)

    def is_in(self, labels: Sequence[int]) -> bool:
        """Whether the last of the items is the end-of-text token.

        labels: (length,), before the shift. Blanks after it do not count: chat templates put a
        line break behind each turn.
        """
        for index in range(len(labels) - 1, 0, -1):
            label = labels[index]
            if label == self.tokenizer.eos_token_id:
                return True
            if label != IGNORED_LABEL and not self._blank(label):
                return False
        return False

    def _blank(self, token: int) -> bool:
        if token not in self._is_blank:
            self._is_blank[token] = not self.tokenizer.decode([token]).strip()
        return self._is_blank[token]
