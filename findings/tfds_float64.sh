#!/usr/bin/env bash
# A feature of tensorflow-datasets that is declared as float64 takes float64, refuses an array of float32, and returns
# float64, but holds float32: it is written as a list of floats of 32 bits. A time of 2025 in seconds since 1970 comes
# back up to 64 seconds off, so that frames of a minute have the same time; an id of 9 digits that came as a float is
# another one, and a coordinate in degrees is off by decimetres. Numbers beyond 3.4e38 are infinite. Nothing is said,
# and the type of what is returned tells nothing. The same Tensor with encoding="bytes" or "zlib" is right, but Scalar
# and Sequence have no encoding, and int64 and uint64 are kept to the last digit. Seen with tensorflow-datasets 4.9.10,
# read without TensorFlow. prismer_jax declares weights as float32, and ids as int64 or text
# (prismer_jax/shards/schema.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check \
  tensorflow-datasets==4.9.10 tensorflow-metadata==1.21.0 protobuf==7.36.2 numpy==2.4.6
"$folder/venv/bin/python" - <<'P'
import importlib.metadata
import sys

import numpy as np
from tensorflow_datasets import features

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("tensorflow-datasets", "protobuf", "numpy")))
given = np.array([1764561722.25, 1764561730.5, 123456789.0, 48.858370123456, 1e300])
kinds = {
    "Tensor of float64": features.Tensor(shape=given.shape, dtype=np.float64),
    "Sequence of float64": features.Sequence(np.float64),
    "Tensor of float64, encoding='bytes'": features.Tensor(shape=given.shape, dtype=np.float64, encoding="bytes"),
    "Tensor of float64, encoding='zlib'": features.Tensor(shape=given.shape, dtype=np.float64, encoding="zlib"),
}


def through(feature, value):
    both = features.FeaturesDict({"value": feature})
    return both.deserialize_example_np(both.serialize_example({"value": value}))["value"]


with np.errstate(over="ignore"):
    single = given.astype(np.float32)
print("given:", given.tolist())
kept = {}
for name, feature in kinds.items():
    back = np.asarray(through(feature, given))
    kept[name] = bool((back == given).all())
    print(f"{name}: {back.tolist()}, of {back.dtype}; {'all kept' if kept[name] else 'not kept'}")
scalar, integer = through(features.Scalar(np.float64), float(given[0])), through(features.Scalar(np.int64), 2**62 + 1)
print(f"Scalar of float64: {scalar}, {scalar - given[0]} seconds off; of int64: 2**62 + {integer - 2**62}, as given")
try:
    kinds["Tensor of float64"].encode_example(single)
    refused = False
except ValueError as error:
    refused = True
    print(f"an array of float32 is refused: {error}")
changed = list(kept.values()) != [False, False, True, True] or scalar != single[0] or integer != 2**62 + 1
changed |= not np.array_equal(through(kinds["Tensor of float64"], given), single) or not refused
sys.exit("The behaviour has changed." if changed else 0)
P
