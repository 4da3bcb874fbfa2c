"""Places and masks as words: <loc0000> to <loc1023> and <seg000> to <seg127>, behind Gemma's own.

Source: google-research/big_vision, pp/proj/paligemma/ops.py (get_extra_tokens).
"""

from __future__ import annotations

from prismer_jax.files import storage
from prismer_jax.pp.tokenizer import SCENES

PIECES = (*(f"<loc{number:04d}>" for number in range(1024)), *(f"<seg{number:03d}>" for number in range(128)))


def extended(model: bytes) -> bytes:
    """Returns a SentencePiece model with PIECES, which are found in a text before any other piece.

    A model that has them already, as PaliGemma's own tokenizer does, is returned as it is.
    """
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    pieces = {piece.piece for piece in proto.pieces}
    new = [piece for piece in PIECES if piece not in pieces]
    if not new:
        return model
    for piece in new:
        proto.pieces.add(piece=piece, score=0.0, type=sentencepiece_model_pb2.ModelProto.SentencePiece.USER_DEFINED)
    return proto.SerializeToString()


def of_scenes() -> str:
    """Returns the spec of the scenes' tokenizer with PIECES, a file beside the scenes that is written if need be."""
    path = storage.data_folder(None) / "scenes" / "places.model"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.write(path, extended(SCENES.read_bytes()))
    return f"sentencepiece:{path}"
