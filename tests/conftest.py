"""GPU tests run where there is a GPU; elsewhere they say why not."""

from __future__ import annotations

import pytest

from nrt.runtime.cuda import device_count


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    # Asked for by name, they run: on a machine without a GPU that is an error to be seen.
    if not gpu or config.getoption("markexpr").strip() == "gpu" or device_count() > 0:
        return
    reason = "needs an NVIDIA GPU and its driver: none found (`pytest -m gpu` runs it regardless)"
    for item in gpu:
        item.add_marker(pytest.mark.skip(reason=reason))
