"""``ds.deepsd``: the functions of xdeepsd as methods of a Dataset or DataArray."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import xarray as xr

if TYPE_CHECKING:
    import os

    import torch
    from matplotlib.figure import Figure

    from xdeepsd.inference.correction import Correction
    from xdeepsd.models.stack import StackedSRCNN
    from xdeepsd.stores.target import StoreLike


@xr.register_dataset_accessor("deepsd")
@xr.register_dataarray_accessor("deepsd")
class DeepSDAccessor:
    """The functions of xdeepsd for a Dataset or DataArray: each method calls the function of the same name."""

    def __init__(self, obj: xr.Dataset | xr.DataArray) -> None:
        self._obj = obj

    def __dir__(self) -> list[str]:
        """What ``ds.deepsd.`` completes to: the methods, and nothing else."""
        return [name for name in vars(type(self)) if not name.startswith("_")]

    def downscale(
        self,
        model: StackedSRCNN | Sequence[StackedSRCNN],
        static: xr.Dataset | xr.DataArray | None = None,
        *,
        variable: str | None = None,
        mask: xr.DataArray | None = None,
        device: str | torch.device | None = None,
        precision: str = "float32",
        batch_size: int | None = None,
        conserve: str | None = None,
        members: int | None = None,
        seed: int = 0,
        statistics: bool = False,
        units: str | None = None,
        day_ends: float | None = None,
        allow_partial: bool = False,
        bias_correct: Correction | str | os.PathLike[str] | None = None,
    ) -> xr.Dataset | xr.DataArray:
        """Same as ``xdeepsd.downscale(ds, model, static, ...)``, which documents the arguments."""
        from xdeepsd.inference.downscale import downscale

        options: dict[str, Any] = {
            "device": device,
            "precision": precision,
            "batch_size": batch_size,
            "conserve": conserve,
        }
        given = {"units": units, "day_ends": day_ends, "allow_partial": allow_partial, "bias_correct": bias_correct}
        options |= given | {"members": members, "seed": seed, "statistics": statistics}
        return downscale(self._obj, model, static, variable=variable, mask=mask, **options)

    def distribution(
        self,
        model: StackedSRCNN,
        static: xr.Dataset | xr.DataArray | None = None,
        *,
        variable: str | None = None,
        mask: xr.DataArray | None = None,
        device: str | torch.device | None = None,
        precision: str = "float32",
        batch_size: int | None = None,
        conserve: str | None = None,
        units: str | None = None,
        day_ends: float | None = None,
        allow_partial: bool = False,
        bias_correct: Correction | str | os.PathLike[str] | None = None,
    ) -> xr.Dataset:
        """Same as ``xdeepsd.distribution(ds, model, static, ...)``, which documents the arguments."""
        from xdeepsd.inference.distribution import distribution

        return distribution(
            self._obj, model, static, variable=variable, mask=mask, device=device, precision=precision,
            batch_size=batch_size, conserve=conserve, units=units, day_ends=day_ends, allow_partial=allow_partial,
            bias_correct=bias_correct,
        )  # fmt: skip

    def to_zarr(
        self,
        store: StoreLike,
        *,
        group: str | None = None,
        resume: bool = True,
        overwrite: bool = False,
        same_input: bool = False,
        encoding: Mapping[str, Mapping[str, Any]] | None = None,
        zarr_format: Literal[2, 3] = 3,
        storage_options: Mapping[str, Any] | None = None,
        progress: bool | Callable[[int, int], None] | None = None,
    ) -> None:
        """Same as ``xdeepsd.to_zarr(ds, store, ...)``, which documents the arguments."""
        from xdeepsd.stores.write import to_zarr

        how = {"group": group, "resume": resume, "overwrite": overwrite, "same_input": same_input, "progress": progress}
        what = {"encoding": encoding, "zarr_format": zarr_format, "storage_options": storage_options}
        to_zarr(self._obj, store, **how, **what)  # type: ignore[arg-type]

    @property
    def plot(self) -> Pictures:
        """Pictures of the field: `xdeepsd.plot`."""
        return Pictures(self._obj)


class Pictures:
    """``ds.deepsd.plot``: the functions of `xdeepsd.plot` that take a prediction."""

    def __init__(self, obj: xr.Dataset | xr.DataArray) -> None:
        self._obj = obj

    def compare(
        self,
        truth: xr.Dataset | xr.DataArray,
        *,
        coarse: xr.Dataset | xr.DataArray | None = None,
        beside: Mapping[str, xr.Dataset | xr.DataArray] | None = None,
        day: str | None = None,
        mask: xr.DataArray | None = None,
        title: str | None = None,
        projection: Any = None,
    ) -> Figure:
        """Same as ``xdeepsd.plot.compare(ds, truth, ...)``, which documents the arguments."""
        from xdeepsd.evaluation.plot.panels import compare

        options: dict[str, Any] = {"coarse": coarse, "beside": beside, "day": day, "mask": mask, "title": title}
        return compare(self._obj, truth, **options, projection=projection)
