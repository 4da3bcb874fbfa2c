"""Train vision-language models with the help of expert models, in JAX."""

__version__ = "0.2.0.dev0"
