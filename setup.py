"""Installs prismer_jax. The core install is CPU JAX, without PyTorch, TensorFlow or transformers."""

import pathlib
import re

from setuptools import find_namespace_packages, find_packages, setup
from setuptools.command.build_py import build_py

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "prismer_jax/__init__.py").read_text()).group(1)

CORE = [
    "jax>=0.10,<0.13",  # arrays, compilation, sharding
    "flax>=0.12",  # linen modules
    "numpy>=2.0",  # arrays on the host
    "optax>=0.2.8",  # optimisers and schedules
    "orbax-checkpoint>=0.12.5",  # asynchronous sharded checkpoints; older ones copy all arrays before they write
    "grain>=0.2.16",  # data loading whose position is an integer
    "tensorflow-datasets>=4.9.10",  # writes and reads ArrayRecord data sets (TensorFlow itself is never imported)
    "protobuf>=6.31.1",  # tensorflow-metadata 1.21, which TFDS needs, asks for 4.25 and fails below this
    "array_record>=0.8.1",  # the shard format
    "fsspec>=2024.6",  # data sets on gs://, s3://, hf:// ... (TFDS needs it too); each store has a package of its own
    "ml_collections>=1.0",  # config files and their command-line overrides
    "sentencepiece>=0.2",  # the tokenizer of the embedded data set
    "tokenizers>=0.20",  # RoBERTa's byte-level BPE
    "huggingface_hub>=0.25",  # fetches published weights; tokenizers needs it anyway
    "msgpack>=1",  # exports as Flax's bytes (Flax needs it too)
    "safetensors>=0.6.2",  # checks the headers of weights in its format; tells the order of the tensors since 0.6
    "einops>=0.8",  # axis-named reshapes
    "ml_dtypes>=0.5",  # bfloat16 and float8 in files of weights, as NumPy types (jax needs it too)
    "jaxtyping>=0.3",  # array shapes in signatures ...
    "beartype>=0.20",  # ... checked when a function is traced
    "opencv-python-headless>=4.12",  # decodes, resizes and moves photos and label maps; PNG filters since 4.12
    "pillow>=10.1",  # decodes photos, bicubic resizing as the reference does it
    "tensorboardX>=2.6.5",  # TensorBoard's event files, without TensorFlow or PyTorch
    "matplotlib>=3.8.4",  # learning curves
    "rich>=13",  # progress bars
]
EVAL = ["pycocoevalcap>=1.2"]  # the official caption metrics, 104 MB of jars: METEOR and SPICE, which need Java
GCS = ["gcsfs>=2024.6"]  # runs and models in a bucket, gs://
GGUF = ["gguf>=0.17"]  # language models in llama.cpp's files, for tools.convert nanovlm
ONNX = ["onnx>=1.16"]  # image encoders in ONNX files, for tools.convert nanovlm
OKVQA = ["simplemma>=1"]  # base forms of OK-VQA's answers, without spaCy and its model
TEST = [
    "pytest>=8",
    "setuptools>=77",  # builds the wheel whose files a test looks at
    "pytest-xdist>=3",  # two cores test twice as fast
    "ruff>=0.8",
    *GCS,
    "hypothesis>=6",  # properties of parsers and metrics
    "nbclient>=0.10",  # runs the notebooks
    "nbformat>=5.7",  # checks that they are valid
    "ipykernel>=6.29",  # the Python that they run in
    *GGUF,
    *ONNX,
    *OKVQA,
    *EVAL,  # without Java only the scores are compared
]

# Folders of the checkout, and the packages that a wheel has them as: it brings no `tools` or `configs` of its own to
# site-packages. `recipes` is a folder apart so that a config's `from configs import common` finds them in it alone.
FOLDERS = {
    "tools": "prismer_jax.tools",
    "configs": "prismer_jax.recipes.configs",
    "transfers": "prismer_jax.recipes.transfers",
}


class WithoutTests(build_py):
    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        modules = super().find_package_modules(package, package_dir)
        return [module for module in modules if not module[1].endswith("_test")]


setup(
    name="prismer_jax",
    version=VERSION,
    description="Vision-language models trained with the help of experts, in JAX",
    long_description=(ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[
        *find_packages(include=["prismer_jax", "prismer_jax.*"]),
        *FOLDERS.values(),
        *(f"prismer_jax.tools.{name}" for name in find_namespace_packages("tools", exclude=["*__pycache__"])),
    ],
    package_dir={package: folder for folder, package in FOLDERS.items()},
    cmdclass={"build_py": WithoutTests},
    package_data={
        "prismer_jax": ["py.typed", "*.pyi", "pp/*.model", "objects/*.txt", "report/*.css"],
        "prismer_jax.tools.demo": ["*.css"],
    },
    install_requires=CORE,
    entry_points={"lmms_eval.models": ["prismer_jax = prismer_jax.lmms:manifest"]},
    extras_require={
        "test": TEST,
        "gcs": GCS,
        "gguf": GGUF,
        "onnx": ONNX,
        "okvqa": OKVQA,
        "data": ["pyarrow>=15"],  # Parquet; tensorflow-datasets brings it today
        "cuda": ["jax[cuda12]>=0.10,<0.13"],
        "plan": ["libtpu>=0.0.42"],  # compiles for TPUs that are not there
        "tpu": ["jax[tpu]>=0.10,<0.13", *GCS],  # hosts of a pod have no disk in common
        "beam": ["apache-beam>=2.60"],  # data sets built by clusters; needs Pillow 12, protobuf 6, so no part of `test`
        "wandb": ["wandb"],  # experiment tracking
        "demo": [
            "gradio>=6.31"
        ],  # the page of tools.demo; from 6.24 on it has a history to switch off, no older one was tried
        "eval": EVAL,
        # The harness that nanoVLM's authors report with, and PyTorch with it; it imports what filelock 4 has moved.
        "lmms": ["lmms-eval>=0.7.3", "filelock<4"],
        "bench": ["torch", "transformers==4.26.1"],  # the PyTorch original, to compare with
    },
)
