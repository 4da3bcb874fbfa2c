"""Reading of words: CharNet finds and reads them, CLIP's text encoder says what they mean."""

from prismer_jax.experts.ocr.expert import OcrDetection

__all__ = ["OcrDetection"]
