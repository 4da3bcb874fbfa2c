"""Decoding with any model that can prefill a prompt and extend a cache: greedy, sampling, beam search, ranking.

`prefill(encoded, prompt, max_len) -> (logits [B,1,V] of the last column, cache)` and
`extend(cache, tokens [B,K,T]) -> (logits [B,K,T,V], cache)` are all that is asked of a model. A cache is a dict:
`shared` (one row an image, read by all its K sequences and never copied), `layers` (leaves [layers,B,K,S,...]),
`rows` (leaves [B,K,...]) and `index` (columns filled). Every shape is static, S = max_len; loops end as soon as all
sequences have ended.

Prompts may be padded on the left or on the right; decoding goes on after their last column. All lengths (`max_len`,
`min_len`, the length in a beam's score) count the prompt's columns, pads included, as in the reference
(NVlabs/prismer with transformers 4.26.1).
"""

from prismer_jax.decode.batch import METHODS, generate, rank_answers
from prismer_jax.decode.beam import beam_search
from prismer_jax.decode.ranking import rank
from prismer_jax.decode.sampling import greedy, narrow, sample

__all__ = ["METHODS", "beam_search", "generate", "greedy", "narrow", "rank", "rank_answers", "sample"]
