"""The device back end's operations against OpenCV, SciPy and the cpu back end."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from scipy import ndimage

from data_pipelines.degradations import cpu, device
from data_pipelines.degradations.cpu import BANK_SIZE
from data_pipelines.degradations.device import convolve, exact, fast_size, resize, sharpen_batched
from data_pipelines.degradations.sampling import MODES, Op, make_kernel
from data_pipelines.photos import load_photo
from megasr.images import from_uint8
from megasr.rng import numpy_generator

LEVEL = 1 / 255
_SHAPE = {"sigma_x": 2.0, "sigma_y": 0.7, "theta": 0.6, "beta": 0.8}
KERNELS: list[Op] = [
    {"kernel": "aniso", "size": 21, **_SHAPE},
    {"kernel": "generalized_aniso", "size": 13, **_SHAPE},
    {"kernel": "plateau_aniso", "size": 7, **_SHAPE},
    {"kernel": "sinc", "size": 21, "cutoff": 1.1},
]


def _random_image(*shape: int) -> np.ndarray:
    return numpy_generator(0, "image", *shape).random(shape, dtype=np.float32)


def _planes(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(image, -1, 0)))


def _photo(height: int, width: int) -> np.ndarray:
    return load_photo("astronaut")[:height, :width].astype(np.float32) / 255


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("size", "to"),
    [
        ((64, 64), (32, 32)),
        ((64, 64), (96, 96)),
        ((61, 47), (29, 22)),
        ((61, 47), (88, 67)),
        ((33, 86), (75, 13)),  # one side grows, the other shrinks
        ((65, 48), (65, 74)),  # OpenCV rounds 37 * 48 / 74 = 24 down to 23
        ((40, 40), (1, 1)),
        ((1, 1), (5, 3)),
        ((2, 9), (9, 2)),
    ],
)
def test_resizing_is_opencvs(mode: str, size: tuple[int, int], to: tuple[int, int]) -> None:
    image = _random_image(*size, 3)
    expected = cv2.resize(image, to[::-1], interpolation=cpu._INTERPOLATION[mode])
    actual = resize(_planes(image), *to, mode).numpy()
    np.testing.assert_allclose(actual, np.moveaxis(expected, -1, 0), atol=2e-5)


def test_resizing_is_opencvs_at_any_scale() -> None:
    rng = numpy_generator(0, "scales")
    for _ in range(60):
        height, width, scale = *rng.integers(16, 90, 2), rng.uniform(0.15, 1.5)
        to = (max(1, round(height * scale)), max(1, round(width * scale)))
        image, mode = _random_image(height, width, 3), MODES[rng.integers(3)]
        expected = cv2.resize(image, to[::-1], interpolation=cpu._INTERPOLATION[mode])
        actual = resize(_planes(image), *to, mode).numpy()
        np.testing.assert_allclose(
            actual, np.moveaxis(expected, -1, 0), atol=2e-5, err_msg=f"{height} {width} {mode} {to}"
        )


@pytest.mark.parametrize("blur", KERNELS, ids=lambda blur: f"{blur['kernel']}-{blur['size']}")
@pytest.mark.parametrize("size", [(40, 57), (3, 8), (1, 30)])
def test_blur_is_scipys_convolution_with_mirrored_borders(blur: Op, size: tuple[int, int]) -> None:
    image, kernel = _random_image(*size, 3), make_kernel(blur)
    expected = [
        ndimage.convolve(plane.astype(np.float64), kernel, mode="mirror") for plane in np.moveaxis(image, -1, 0)
    ]
    taps = torch.from_numpy(kernel).float()
    np.testing.assert_allclose(convolve(_planes(image), taps).numpy(), expected, atol=5e-6)


def test_blur_of_one_pixel_changes_nothing() -> None:
    image = _planes(_random_image(5, 5, 3))
    assert torch.equal(convolve(image, torch.ones(1, 1)), image)


@pytest.mark.parametrize(("size", "fast"), [(1, 4), (12, 12), (13, 16), (25, 32), (526, 540), (541, 576)])
def test_transforms_have_sizes_of_small_primes(size: int, fast: int) -> None:
    assert fast_size(size) == fast


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("offset", [0, BANK_SIZE - 3, 2**31 - 1])
@pytest.mark.parametrize("name", ["gaussian_noise", "poisson_noise"])
def test_noise_is_the_cpu_back_ends_pixel_by_pixel(name: str, offset: int, grey: bool) -> None:
    image = np.clip(3 * _photo(37, 51) - 1, 0, 1)  # black and white, where noise is clipped
    op: Op = {"op": name, "sigma": 20.0, "scale": 1.7, "grey": grey, "offset": offset}
    bgr = np.ascontiguousarray(image[..., ::-1])
    expected = cpu._OPERATIONS[name](bgr.copy(), op)[..., ::-1]
    actual = np.moveaxis(device._OPERATIONS[name]([_planes(image)], [op])[0].numpy(), 0, -1)
    # Grey of exactly half a level may be rounded to either side, which is another row of the Poisson table.
    assert (np.abs(actual - expected) < 1e-6).mean() > 0.999
    assert np.abs(actual - image).mean() > 2 * LEVEL


def test_noise_larger_than_the_bank_repeats_it(monkeypatch: pytest.MonkeyPatch) -> None:
    image = _photo(12, 20)
    op: Op = {"op": "gaussian_noise", "sigma": 9.0, "grey": False, "offset": 1234}
    monkeypatch.setattr(device, "BANK_SIZE", 100)
    monkeypatch.setattr("data_pipelines.degradations.cpu.BANK_SIZE", 100)
    expected = cpu.gaussian_noise(np.ascontiguousarray(image[..., ::-1]), op)[..., ::-1]
    actual = device._gaussian_noise([_planes(image)], [op])[0].numpy()
    np.testing.assert_allclose(np.moveaxis(actual, 0, -1), expected, atol=1e-6)


def test_poisson_noise_has_the_variance_of_photon_counts() -> None:
    level = 100
    op: Op = {"op": "poisson_noise", "scale": 1.5, "grey": False, "offset": 5}
    flat = torch.full((3, 200, 200), level * LEVEL)
    noise = device._poisson_noise([flat], [op])[0] - flat
    assert noise.mean().item() == pytest.approx(0, abs=0.002)
    assert noise.var().item() == pytest.approx(1.5**2 * level * LEVEL / 256, rel=0.02)


@pytest.mark.parametrize("size", [(90, 71), (20, 33)])
def test_sharpening_is_the_formula(size: tuple[int, int]) -> None:
    image = _photo(*size)

    def wide(x: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(x, (51, 51), 0, borderType=cv2.BORDER_REFLECT_101)

    residual = image - wide(image)
    mask = wide((np.abs(residual) > 10 * LEVEL).astype(np.float32))
    expected = mask * np.clip(image + 0.5 * residual, 0, 1) + (1 - mask) * image
    actual = sharpen_batched(_planes(image)[None])[0].numpy()
    # Half a level of rounding; a residual within float rounding of the threshold may fall on either side of it.
    np.testing.assert_allclose(np.moveaxis(actual, 0, -1), expected, atol=0.51 * LEVEL)
    assert np.abs(expected - image).max() > 5 * LEVEL


def test_sharpening_agrees_with_the_cpu_back_end() -> None:
    from data_pipelines.degradations.cpu import sharpen

    hq = load_photo("coffee")[100:228, 200:360]
    difference = (sharpen_batched(from_uint8(hq)[None])[0] - from_uint8(sharpen(hq))).abs() / LEVEL
    assert difference.max() < 1.01 and difference.mean() < 0.1


def _fails_inside() -> tuple[bool, torch.dtype, str]:
    """What holds inside, which ends with an error."""
    try:
        with torch.autocast("cpu", torch.bfloat16), exact(torch.device("cpu")):
            product = torch.ones(2, 2) @ torch.ones(2, 2)
            inside = torch.is_grad_enabled(), product.dtype, torch.backends.cuda.matmul.fp32_precision
            raise KeyError
    except KeyError:
        return inside


def test_products_are_exact_whatever_the_training_asks_for() -> None:
    expected = (False, torch.float32, "ieee")
    try:
        torch.set_float32_matmul_precision("medium")
        assert _fails_inside() == expected
        assert torch.get_float32_matmul_precision() == "medium"
        torch.set_float32_matmul_precision("highest")
        torch.backends.cuda.matmul.fp32_precision = "tf32"  # after which reading the older setting raises
        assert _fails_inside() == expected
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
        torch.backends.cuda.matmul.fp32_precision = "ieee"
    finally:
        torch.set_float32_matmul_precision("highest")
