"""Trains the SentencePiece model that ships with the package, prismer_jax/pp/scenes.model.

    python -m tools.train_tokenizer [--output FILE] [--vocab-size 1000] [--scenes 1500]

It learns from the texts of the embedded data set, so that their words are one piece each, and from a few sentences of
the kind that is said about photos. Ids as in RoBERTa: <s> 0, pad 1, </s> 2, unk 3. Letters, digits and punctuation of
ASCII are pieces, any other character is written as bytes: every text can be written and comes back as it was. (One
exception: U+2581, by which SentencePiece marks spaces, comes back as a space.) Two runs give the same file.
"""

from __future__ import annotations

import io
import string
from collections.abc import Iterator, Sequence

import sentencepiece

from prismer_jax import config
from prismer_jax.datasets import scenes
from prismer_jax.datasets.scenes import questions as scenes_questions
from prismer_jax.datasets.scenes import text as scenes_text
from prismer_jax.datasets.scenes.world import WORDS
from prismer_jax.errors import UserError, run_main
from prismer_jax.files import storage
from prismer_jax.pp import tokenizer

PHOTOS = """
A man in a blue shirt is riding a wave on a surfboard in the ocean.
A woman is holding an umbrella while walking down the street in the rain.
Two dogs are playing with a ball in the grass near a tree.
A black cat is sleeping on a bed next to a window.
A group of people are sitting around a table with plates of food.
A young boy is throwing a ball to a girl on the beach.
A large white bird is flying over the water.
A red train is coming down the tracks at the station.
A city bus is parked on the side of the road in front of a building.
A bowl of soup and a cup of coffee are on the kitchen counter.
Several cars are waiting at a traffic light at night.
A person is skiing down a hill that is covered with snow.
A small child is eating a piece of pizza with his hands.
A brown horse is standing behind a fence in a field.
An old clock hangs on the wall above a wooden door.
The man is wearing a hat and glasses and talking on a phone.
A bathroom with a sink, a toilet and a mirror.
A vase of flowers stands on top of the table.
A laptop computer, a keyboard and a mouse are on the desk.
An airplane is flying through a cloudy sky.
A motorcycle and a bicycle are leaning against a stone wall.
Some boats are floating on the river under the bridge.
What is the man doing? What is she wearing? What kind of animal is this?
Where was this picture taken? Who is in the photo? Why are they smiling?
Is it sunny? Does the dog have a collar? Are there any people? Can you see the moon?
How many chairs are in the room? What time of day is it? What sport is being played?
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = config.ArgumentParser(prog="python -m tools.train_tokenizer", description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=storage.on_disk, default=tokenizer.SCENES)
    parser.add_argument("--vocab-size", type=int, default=640)
    parser.add_argument("--scenes", type=int, default=1500)
    args = parser.parse_args(argv)
    if args.scenes < 1:
        raise UserError(f"--scenes {args.scenes}: at least 1, of whose texts pieces are made.")
    storage.write(args.output, train(args.scenes, args.vocab_size))
    print(f"{args.output}: {tokenizer.load(f'sentencepiece:{args.output}').vocab_size} pieces")


def train(num_scenes: int, vocab_size: int) -> bytes:
    """Returns the model file.

    Raises:
      UserError: the texts do not have so many pieces, or more characters than that.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences(num_scenes),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            bos_id=0,  # the ids of this model; all else takes them from its file
            pad_id=1,
            eos_id=2,
            unk_id=3,
            byte_fallback=True,
            required_chars=string.ascii_letters + string.digits + string.punctuation,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            num_threads=1,  # sums in another order would give other scores
            minloglevel=2,
        )
    except RuntimeError as error:  # of C++: a file and a line in front of what is wrong
        reason = str(error).rpartition("] ")[2].partition(" Increase ")[0]
        raise UserError(f"--vocab-size {vocab_size}, --scenes {num_scenes}: {reason}") from None
    return model.getvalue()


def sentences(num_scenes: int) -> Iterator[str]:
    """Captions, questions and answers of so many scenes, the words on signs, and the sentences about photos."""
    settings = scenes.Settings("train", 96, num_scenes, 0)
    for index in range(num_scenes):
        drawn, view, rng = scenes.scene(settings, index)
        yield from scenes_text.captions(drawn, view, rng)
        for question in scenes_questions.questions(drawn, view, rng):
            yield question.text
            yield from sorted(set(question.answers))
    for _ in range(num_scenes // 100):
        yield from PHOTOS.strip().splitlines()
        yield from WORDS


if __name__ == "__main__":
    run_main(main)
