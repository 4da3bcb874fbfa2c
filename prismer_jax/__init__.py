"""Train vision-language models with the help of expert models, in JAX."""

__version__ = "0.1.0"
