"""How a benchmark's question is put to a model, where scores are to be compared with published ones.

Source of 'nanovlm': huggingface/nanoVLM at 4e0c096, eval/lmms_eval_wrapper.py. Its entry for 'chartvqa' is of no task
of lmms-eval, where that one is called chartqa, so that it never acted; it is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from prismer_jax.errors import choose


class Wording(NamedTuple):
    """Changes to a question.

    Attributes:
      before, behind: what is said around it.
      replaced: (old, new) in the question and what is before it, one after the other.
      begun: what the answer begins with, which is not part of it.
    """

    before: str = ""
    behind: str = ""
    replaced: Sequence[tuple[str, str]] = ()
    begun: str = ""


_LETTER = Wording(
    replaced=(
        ("\nOptions:", "\nChoices:"),
        ("\nA. ", "\nChoices:\nA. "),
        ("Please select the correct answer from the options above.", "Answer with the letter."),
        ("Answer with the option's letter from the given choices directly", "Answer with the letter directly"),
    ),
    begun="Answer:",
)
_MMMU = Wording(
    replaced=(
        ("Question:", ""),
        ("Answer with the option's letter from the given choices directly.", "Answer with the letter directly."),
        ("\nA. ", "\nChoices:\nA. "),
    ),
    begun="Answer:",
)
_DOCVQA = Wording(
    before="Give a short and terse answer to the following question. Do not paraphrase or reformat the text you see in "
    "the image. Do not include any full stops. Just give the answer without additional explanation. Question: "
)
_TEXTVQA = Wording(
    before="Answer the following question about the image using as few words as possible. Follow these additional "
    "instructions:\n-Always answer a binary question with Yes or No.\n-When asked what time it is, reply with the time "
    "seen in the image.\n-Do not put any full stops at the end of the answer.\n-Do not put quotation marks around the "
    "answer.\n-An answer with one or two words is favorable.\n-Do not apply common sense knowledge. The answer can be "
    "found in the image.\nQuestion: "
)
_BRIEF = Wording(behind="\nGive a very brief answer.")

WORDINGS: dict[str, Mapping[str, Wording]] = {
    "plain": {},
    "nanovlm": {
        **dict.fromkeys(("ai2d", "mmstar", "seedbench", "scienceqa"), _LETTER),
        **dict.fromkeys(("mmmu_val", "mmmu_test"), _MMMU),
        **dict.fromkeys(("docvqa_val", "docvqa_test"), _DOCVQA),
        **dict.fromkeys(("textvqa_val", "textvqa_test"), _TEXTVQA),
        **dict.fromkeys(("infovqa_val", "mme", "ocrbench"), _BRIEF),
    },
}


def worded(question: str, task: str, how: str) -> tuple[str, str]:
    """Returns the question of a task of lmms-eval, and what its answer begins with.

    Args:
      how: 'plain' leaves questions as lmms-eval puts them, 'nanovlm' puts them as its authors' wrapper does.
    """
    wording = choose("wording", how, WORDINGS).get(task, Wording())
    question = wording.before + question
    for old, new in wording.replaced:
        question = question.replace(old, new)
    return question + wording.behind, wording.begun
