"""Photos found by what is in them: see prismer_jax.retrieve.__main__."""
