"""Trains a codec of masks, sixteen words each, as PaliGemma writes them.

    python -m tools.train_mask_codec --output codec.npz                                   # on rendered scenes
    python -m tools.train_mask_codec --output codec.npz --path instances.json --images photos/ --width 128 --dim 512

The file has the layout of PaliGemma's vae-oid.npz. A model speaks the words of one codec: with another's it is trained
anew.
"""

from __future__ import annotations

from collections.abc import Sequence

from prismer_jax import config, pp, runtime
from prismer_jax.datasets import scenes
from prismer_jax.errors import UserError, run_main
from prismer_jax.files import storage
from prismer_jax.training import mask_codec


def main(argv: Sequence[str] | None = None) -> None:
    parser = config.ArgumentParser(prog="python -m tools.train_mask_codec", description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=storage.on_disk, required=True, help="an .npz file")
    parser.add_argument("--path", type=storage.on_disk, help="a list of objects with masks, such as COCO's instances")
    parser.add_argument("--images", type=storage.on_disk, help="the folder of its photos")
    parser.add_argument("--masks", type=int, default=6000, help="how many to train on at most, beside a tenth to test")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--width", type=int, default=32, help="channels, a multiple of 8; PaliGemma's has 128")
    parser.add_argument("--dim", type=int, default=32, help="of a code; PaliGemma's has 512")
    args = parser.parse_args(argv)
    if args.width < 8 or args.width % 8 or min(args.dim, args.steps, args.masks) < 1:
        raise UserError("--width must be a multiple of 8; --dim, --steps and --masks at least 1.")
    runtime.use_compilation_cache()
    if args.path is not None:
        masks = mask_codec.of_list(args.path, args.images, args.masks)
    else:
        masks = mask_codec.masks_in(scenes.load("train"), pp.build(mask_codec.chain_of_scenes()), args.masks)
    test = len(masks) // 10
    codec = mask_codec.train(masks[test:], steps=args.steps, width=args.width, dim=args.dim)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    codec.save(args.output)
    overlap = mask_codec.overlap(codec, masks[:test])
    print(f"{args.output}: mean overlap {overlap:.3f} of {test} masks that were not learnt from.")


if __name__ == "__main__":
    run_main(main)
