import io
import zipfile

import numpy as np
import pytest

from prismer_jax.errors import UserError
from prismer_jax.objects import codec as codecs


@pytest.fixture(scope="module")
def weights():
    rng = np.random.default_rng(0)
    shapes = codecs.shapes(width=8, dim=4)
    return {key: rng.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}


def test_the_published_codec_has_as_many_numbers():
    shapes = codecs.shapes()
    assert len(shapes) == 47
    assert shapes["encoder.6.weight"] == (128, 64, 4, 4)
    assert shapes["decoder.6.weight"] == (128, 64, 4, 4)
    assert shapes["decoder.6.bias"] == (64,)
    assert shapes["_vq_vae._embedding"] == (128, 512)


def test_a_convolution_is_that_of_its_definition():
    rng = np.random.default_rng(0)
    x, kernel, bias = rng.standard_normal((2, 6, 6, 3)), rng.standard_normal((5, 3, 4, 4)), rng.standard_normal(5)
    y = codecs.convolution(x, kernel, bias, stride=2, pad=1)
    assert y.shape == (2, 3, 3, 5)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    there = sum(padded[1, 4 + i, 2 + j] @ kernel[3, :, i, j] for i in range(4) for j in range(4)) + bias[3]
    np.testing.assert_allclose(y[1, 2, 1, 3], there)
    # To undo a stride is to multiply by the transposed matrix.
    back = codecs.transposed(y, kernel, np.zeros(3))
    other = codecs.convolution(x, kernel, np.zeros(5), stride=2, pad=1)
    np.testing.assert_allclose((back * x).sum(), (y * other).sum())


def test_a_file_is_read_as_it_was_written(tmp_path, weights):
    path = tmp_path / "codec.npz"
    codec = codecs.MaskCodec(weights)
    codec.save(path)
    again = codecs.load(str(path))
    masks = np.random.default_rng(1).random((3, 64, 64)) > 0.5
    codes = again.encode(masks)
    assert codes.shape == (3, 16)
    assert codes.dtype == np.int32
    assert 0 <= codes.min() <= codes.max() < 128
    np.testing.assert_array_equal(codes, codec.encode(masks))
    assert again.decode(codes).shape == (3, 64, 64)


def test_what_is_no_codec_is_named(tmp_path, weights):
    def refused(problem, content):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.npz"
        if isinstance(content, dict):
            np.savez(path, **content)
        else:
            path.write_bytes(content)
        with pytest.raises(UserError, match=problem) as error:
            codecs.load(str(path))
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)

    refused("no codec of masks", {"a": np.zeros(3)})
    refused("encoder.4.bias is missing", {key: value for key, value in weights.items() if key != "encoder.4.bias"})
    refused("extra is missing, of another shape or too many", {**weights, "extra": np.zeros(1)})
    refused("no .npz of arrays", b"garbage")
    array = io.BytesIO()
    np.save(array, np.zeros(3))
    refused("no .npz of arrays", array.getvalue())
    refused("no .npz of arrays", {"_vq_vae._embedding": np.array([object()])})  # a pickle, which is not opened
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.npy", b"\x93NUMPY")
    refused("no .npz of arrays", archive.getvalue())
    with pytest.raises(UserError, match="no such file"):
        codecs.load(str(tmp_path / "none.npz"))
