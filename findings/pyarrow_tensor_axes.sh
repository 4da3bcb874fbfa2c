#!/usr/bin/env bash
# PyArrow's FixedShapeTensorArray.from_numpy_ndarray keeps an array whose axes were moved without a copy, as
# np.moveaxis does from channels-first to channels-last, in the order of its memory, and writes beside it how its axes
# are to be permuted. Where three axes take turns, it writes the inverse permutation: to_numpy_ndarray returns photos
# with their axes in another order, of another shape, and what is equally long in all axes comes back permuted at equal
# shape. Files in Parquet say the same to whoever reads them. An exchange of two axes, and a copy by
# np.ascontiguousarray, come back as they were. Seen with pyarrow 21.0.0, 23.0.0 and 26.0.1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check pyarrow==26.0.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'P'
import importlib.metadata
import io
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("pyarrow", "numpy")))


def there_and_back(photos):
    """Returns the permutation that PyArrow notes, and the photos as they come back, at once and through Parquet."""
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(photos)
    file = io.BytesIO()
    pa.parquet.write_table(pa.table({"photo": tensors}), file)
    column = pa.parquet.read_table(file)["photo"]
    return tensors.type.permutation, tensors.to_numpy_ndarray(), column.chunk(0).to_numpy_ndarray()


channels_first = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5)  # two photos
cube = np.arange(2 * 3 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3, 3)
cases = {
    "as they are": channels_first,
    "height and width exchanged": channels_first.swapaxes(2, 3),
    "channels moved to the end": np.moveaxis(channels_first, 1, 3),
    "channels moved to the end, copied": np.ascontiguousarray(np.moveaxis(channels_first, 1, 3)),
    "channels of 3 x 3 photos moved to the end": np.moveaxis(cube, 1, 3),
}
results = {}
for name, photos in cases.items():
    permutation, back, read = there_and_back(photos)
    same = back.shape == photos.shape and bool((back == photos).all())
    results[name] = permutation, same, back.shape, read.shape == back.shape and bool((read == back).all())
    print(f"Photos {photos.shape}, {name}: permutation {permutation}, back as {back.shape},", end=" ")
    print("the same" if same else "others", "and alike from Parquet" if results[name][3] else "and others from Parquet")
expected = {
    "as they are": ([0, 1, 2], True, (2, 3, 4, 5), True),
    "height and width exchanged": ([0, 2, 1], True, (2, 3, 5, 4), True),
    "channels moved to the end": ([2, 0, 1], False, (2, 5, 3, 4), True),  # [1, 2, 0] gives (2, 4, 5, 3)
    "channels moved to the end, copied": ([0, 1, 2], True, (2, 4, 5, 3), True),
    "channels of 3 x 3 photos moved to the end": ([2, 0, 1], False, (2, 3, 3, 3), True),
}
sys.exit(0 if results == expected else "The behaviour has changed.")
P
