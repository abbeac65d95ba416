"""What the parts of the backend suite share: hooks, making tensors, comparing.

Knows nothing of any operation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest

from sagellm_protocol.backend import Backend, RawWeight, WeightFormat
from sagellm_protocol.devices import DType

Floats = npt.NDArray[np.float64]


class BackendSuite:
    """Hooks and helpers of the suite.

    Tests run for each type the backend computes in, and each weight format it takes, as its capabilities list them; so
    they must be made without touching a device that may be absent where tests are collected.
    """

    tolerance: ClassVar[Mapping[DType, float]] = {
        DType.FLOAT32: 2e-5,
        DType.FLOAT16: 4e-3,
        DType.BFLOAT16: 2e-2,
    }
    """Largest error an operation may make in each type, as a share of the largest magnitude in the true result."""
    quantized_tolerance: ClassVar[float] = 2e-2
    """The same for a product with a weight that stays quantised, where activations may be quantised too."""

    def make_backend(self) -> Backend[Any]:
        """A backend ready for use; called once a test. Creating one is cheap."""
        raise NotImplementedError("implement make_backend")

    @pytest.fixture
    def backend(self) -> Backend[Any]:
        """The backend under test."""
        return self.make_backend()

    @pytest.fixture
    def rng(self) -> np.random.Generator:
        """The same random numbers every time."""
        return np.random.default_rng(20240229)

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run a test for each type, and each weight format, that the backend says it has."""
        if "dtype" in metafunc.fixturenames:
            dtypes = self.make_backend().capabilities().dtypes
            metafunc.parametrize("dtype", dtypes, ids=[dtype.value for dtype in dtypes])
        if "weight_format" in metafunc.fixturenames:
            known = {format.value for format in WeightFormat}
            formats = [name for name in self.make_backend().capabilities().weight_formats if name in known]
            metafunc.parametrize("weight_format", [WeightFormat(name) for name in formats], ids=formats)

    # -- making and reading tensors -----------------------------------------------------------------------------------

    def raw(self, values: npt.ArrayLike, name: str = "test") -> RawWeight:
        """Values as a checkpoint would hold them in float32."""
        array = np.ascontiguousarray(values, "<f4")
        return RawWeight(name, WeightFormat.F32.value, array.shape, array.tobytes())

    def tensor(self, backend: Backend[Any], values: npt.ArrayLike, dtype: DType) -> Any:
        """Values on the device, of any shape."""
        return backend.tensor(self.raw(values), dtype)

    def ints(self, backend: Backend[Any], values: Sequence[int]) -> Any:
        """Whole numbers on the device, as ids and positions are given."""
        return backend.from_host(list(values), DType.INT64)

    def read(self, backend: Backend[Any], tensor: Any) -> Floats:
        """A tensor's values."""
        return np.array(backend.to_host(tensor), np.float64)

    def rounded(self, backend: Backend[Any], values: npt.ArrayLike, dtype: DType) -> Floats:
        """Values as they are once the device holds them in ``dtype``: what a fair truth starts from."""
        return self.read(backend, self.tensor(backend, values, dtype))

    # -- comparing ----------------------------------------------------------------------------------------------------

    def check(self, got: npt.ArrayLike, want: Floats, limit: float) -> None:
        """Fail if shapes differ, or the largest error is above its share of the largest true magnitude."""
        values = np.asarray(got, np.float64)
        assert values.shape == want.shape
        assert np.isfinite(values).all()
        error = np.abs(values - want).max(initial=0.0) / max(float(np.abs(want).max(initial=0.0)), 1e-6)
        assert error <= limit, f"error {error:.2e} is above {limit:.0e}"

    def check_tensor(self, backend: Backend[Any], got: Any, want: Floats, dtype: DType) -> None:
        """Compare a tensor with its true values, by the tolerance of ``dtype``."""
        self.check(self.read(backend, got), want, self.tolerance[dtype])
