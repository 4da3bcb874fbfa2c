from prismer_jax.captioner import Captioner as Captioner
from prismer_jax.captioner import load as load

__version__: str
