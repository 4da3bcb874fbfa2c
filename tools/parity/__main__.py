from prismer_jax.errors import run_main
from tools.parity import main

run_main(main)
