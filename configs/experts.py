"""The studies of experts: which of them help, how many, and what those do that see noise.

    python -m tools.sweep --config configs/experts.py --arms experts=all experts=none experts=all,noise=all ...

Arguments, as in experts.py:experts=depth+edge,noise=edge:
  experts: whose labels the model gets: all, none (PrismerZ), or some, such as depth+edge.
  noise: of which of them the labels are replaced by noise.
  teachers: whose maps the photo's tokens learn to predict, in training alone (docs/experts.md).
  labels: a folder of other labels of the held-out scenes, such as a student's, to evaluate a trained model with.
  places: as the quickstart has them; without by default, as in the paper.
  steps, batch: of training, and photos in each.
  smoke: all of it in less than a minute, to see that it works.
"""

from configs import quickstart
from prismer_jax import labels
from prismer_jax.config import parse_arg
from prismer_jax.datasets import scenes
from prismer_jax.errors import UserError


def get_config(arg=None):
    arg = parse_arg(
        arg, experts="all", noise="none", teachers="none", labels="", places=False, steps=300, batch=16, smoke=False
    )
    absent = set(labels.select(arg.noise)) - set(labels.select(arg.experts))
    if absent and arg.noise != "all":  # the arm would be called what it is not
        raise UserError(f"noise={arg.noise}: {', '.join(sorted(absent))} is not in experts={arg.experts}.")
    # The arms of a study may differ in nothing but what is studied: they are the quickstart, and say what they change.
    config = quickstart.get_config(f"experts={arg.experts},places={arg.places},smoke={arg.smoke}")
    if not arg.smoke:  # a sixth of the quickstart's photos: many trainings in an hour, and differences show
        config.batch_size, config.total_steps = arg.batch, arg.steps

    if arg.teachers != "none":
        config.targets = dict(experts=arg.teachers, weight=1.0)
        both = "+".join(labels.select(arg.experts) + labels.select(arg.teachers))
        for part in config.data.values():  # and not where the model is used
            part.pp = part.pp.replace(f"labels_for('{arg.experts}')", f"labels_for('{both}')")

    # Noise takes the place of labels wherever there are any: in training, in evaluation and in use.
    if arg.noise != "none":
        noise = f"|decode|noise_labels('{arg.noise}', num_classes={len(scenes.CLASSES)})|"
        for part in (*config.data.values(), *config.tasks.values(), *config.evals.values()):
            part.pp = part.pp.replace("|decode|", noise)

    if arg.labels:
        for part in config.evals.values():
            part.data = dict(name="altered", of=part.data, experts=arg.experts, how="folder", labels=arg.labels)

    for part in config.evals.values():
        part.blank = False  # arms are compared with each other, not with blindness
    return config
