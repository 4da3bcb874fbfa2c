"""Decoding with any model that can prefill a prompt and extend a cache: greedy, sampling, beam search, ranking.

`prefill(encoded, batch, room) -> (logits [B,1,V] after the prompt's last column, cache)` and
`extend(cache, tokens [B,K,T]) -> (logits [B,K,T,V], cache)` are all that is asked of a model. A cache is a dict:
`shared` (image and prompt: one row an image, read by all its K sequences and never copied), `own` (what was generated:
leaves [layers,B,K,room,...]), `rows` (leaves [B,K,...]) and `index` (columns of `own` that are filled). Every shape is
static; loops end as soon as all sequences have ended.

Prompts may be padded on the left or on the right; decoding goes on after their last column and returns what follows.
"""

from prismer_jax.decode.batch import METHODS, generate

__all__ = ["METHODS", "generate"]
