"""The bias correction: against quantile delta mapping by hand and by xsdba, and what must hold for any input."""

import logging
import sys

import dask
import dask.array
import numpy as np
import pytest
import xarray as xr
from builders import make_coarse, make_stack, make_static
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import xdeepsd
from xdeepsd.cli import app
from xdeepsd.inference.correction import adapt_frequency

DAYS = 800


@pytest.fixture(scope="module")
def history():
    return make_coarse(days=DAYS, seed=1)


@pytest.fixture(scope="module")
def observed():
    rain = make_coarse(days=DAYS, seed=2)
    return (rain * 1.5 + (rain > 4)).assign_attrs(units="mm")


@pytest.fixture(scope="module")
def correction(history, observed):
    return xdeepsd.fit_correction(history, observed, nquantiles=20)


@pytest.fixture(scope="module")
def model():
    stack = make_stack(1, channels=(4, 3), kernels=(3, 1, 3))
    return xdeepsd.StackedSRCNN(stack.stages, static=make_static(make_coarse(), 2))


def never(*args, **kwargs):
    raise AssertionError("computed")


# --- numbers ----------------------------------------------------------------------------------------------------------


def by_hand(history, observed, series, nodes):
    """Cannon et al. 2015, equations 3 to 6, for one cell: ``x F_obs^-1(F(x)) / F_hist^-1(F(x))``."""
    values, inverse, counts = np.unique(series, return_inverse=True, return_counts=True)
    below = np.cumsum(counts) - counts
    rank = (below + (counts - 1) / 2)[inverse]  # ties have their mean rank
    rank = (rank - rank.min()) / (rank.max() - rank.min())
    highest = (values.size > 1) * (series.size - (counts[-1] - 1) / 2) / series.size
    with np.errstate(invalid="ignore", divide="ignore"):
        factors = np.quantile(observed, nodes) / np.quantile(history, nodes)
    there = np.isfinite(factors)
    return series * np.interp(rank * highest, nodes[there], factors[there])


def test_by_hand(history, observed):
    correction = xdeepsd.fit_correction(history, observed, nquantiles=20, max_factor=None, max_tail_factor=None)
    scenario = make_coarse(days=DAYS, seed=5) * 1.3
    got = correction.apply(scenario)
    nodes = correction.data["quantiles"].values
    seasons = scenario["time"].dt.season.values
    for lat, lon in ((0, 0), (3, 5)):
        for season in np.unique(seasons):
            days = seasons == season
            one = [da.values[days, lat, lon].astype(float) for da in (history, observed, scenario)]
            np.testing.assert_allclose(got.values[days, lat, lon], by_hand(*one, nodes), rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize(("group", "kind"), [("time.month", "*"), ("time.season", "*"), ("time", "*"), ("time", "+")])
def test_as_xsdba_does_it(history, observed, group, kind):
    from xsdba.adjustment import QuantileDeltaMapping

    past, seen, scenario = ((da + 0.1).assign_attrs(units="mm d-1") for da in (history, observed, history * 1.2))
    nodes = np.linspace(0.0123, 0.9876, 15) ** 1.01  # no rank lies half-way between two
    trained = QuantileDeltaMapping.train(seen, past, nquantiles=nodes, group=group, kind=kind)
    want = trained.adjust(scenario, interp="nearest").transpose("time", "lat", "lon")
    options = {"interp": "nearest", "max_factor": None, "max_tail_factor": None}
    got = xdeepsd.fit_correction(past, seen, nquantiles=nodes, group=group, kind=kind, **options).apply(scenario)
    np.testing.assert_allclose(got, want.clip(min=0), rtol=1e-5, atol=1e-5)


def test_window_as_xsdba_does_it(history, observed):
    from xsdba.adjustment import QuantileDeltaMapping
    from xsdba.base import Grouper

    past, seen = (
        (da[:700] + 0.1).isel(lat=[0, 1], lon=[2, 3]).assign_attrs(units="mm d-1") for da in (history, observed)
    )
    nodes = np.linspace(0.1, 0.9, 5)
    trained = QuantileDeltaMapping.train(
        seen, past, nquantiles=nodes, group=Grouper("time.dayofyear", 31), kind="*"
    ).ds["af"].transpose("dayofyear", "quantiles", "lat", "lon")  # fmt: skip
    options = {"group": "time.dayofyear", "window": 31, "nquantiles": [0.5], "max_factor": None}
    few = xdeepsd.fit_correction(past[:365], seen[:365], **options)
    assert few.data.sizes["group"] == 365
    own = xdeepsd.fit_correction(past, seen, **(options | {"nquantiles": nodes})).data["factors"]
    for day in (40, 100, 200):
        want = trained.sel(dayofyear=day).transpose("lat", "lon", "quantiles")
        np.testing.assert_allclose(own.sel(group=str(day)), want, rtol=1e-5)


def test_winters_only(history, observed):
    """Not all seasons are there: the others are not needed."""
    winters = history.time.dt.season == "DJF"
    fitted = xdeepsd.fit_correction(history[winters.values], observed, nquantiles=20)
    assert fitted.data["group"].values.tolist() == ["DJF"]
    both = xdeepsd.fit_correction(history, observed, nquantiles=20).data["factors"].sel(group="DJF")
    np.testing.assert_array_equal(fitted.data["factors"].sel(group="DJF"), both)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_history_as_observed_changes_nothing(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    days = data.draw(st.integers(40, 120))
    rain = make_coarse(days=days, nlat=2, nlon=3)
    values = rng.gamma(data.draw(st.sampled_from([0.1, 1.0])), 5, rain.shape).astype("f4")
    values[rng.random(values.shape) < data.draw(st.sampled_from([0.0, 0.5, 0.95, 1.0]))] = 0
    values[rng.random(values.shape) < data.draw(st.sampled_from([0.0, 0.2]))] = np.nan
    values[:, 0, 0] = data.draw(st.sampled_from([0.0, 1.0, np.nan]))
    values[0, 1, 1] = 3
    rain = rain.copy(data=values)
    options = {
        "group": data.draw(st.sampled_from(["time", "time.month"])),
        "kind": data.draw(st.sampled_from(["*", "+"])),
        "adapt_freq_thresh": data.draw(st.sampled_from([None, 0.5])),
    }
    fitted = xdeepsd.fit_correction(rain, rain, nquantiles=[0.25, 0.5, 0.9], **options) if days > 93 else None
    if fitted is None:
        fitted = xdeepsd.fit_correction(rain, rain, nquantiles=[0.25, 0.5, 0.9], **(options | {"group": "time"}))
    np.testing.assert_allclose(fitted.apply(rain), rain, rtol=1e-6, atol=1e-6)


def test_dry_stays_dry_and_missing_missing(correction):
    scenario = make_coarse(days=DAYS, seed=7)
    scenario[10:20, 1, 1] = np.nan
    out = correction.apply(scenario)
    assert (out.where(scenario == 0, 0) == 0).all()
    assert (out.isnull() == scenario.isnull()).all()
    assert (correction.apply(scenario * 0) == 0).sum() == scenario.notnull().sum()


@pytest.mark.parametrize("threshold", [None, 0.5])
def test_chunks_do_not_change_a_bit(history, observed, threshold, monkeypatch):
    options = {"nquantiles": 20, "adapt_freq_thresh": threshold}
    dry = history.where(history > 3, 0)
    want = xdeepsd.fit_correction(dry, observed, **options).apply(dry)
    monkeypatch.setattr("xdeepsd.inference.correction._VALUES_IN_BLOCK", 2 * 8 * DAYS)
    with dask.config.set(scheduler=never):
        lazy = xdeepsd.fit_correction(dry.chunk(time=100, lat=3), observed.chunk(time=90, lon=5), **options)
        out = lazy.apply(dry.chunk(time=70, lon=3))
        part = lazy.apply(dry.isel(lat=slice(2, 5), lon=slice(1, 4)))
    assert lazy.data.chunksizes["lat"] == (2, 2, 2)
    assert out.chunksizes["lon"] == (3, 3, 2)
    np.testing.assert_array_equal(out, want)
    np.testing.assert_array_equal(part, want.isel(lat=slice(2, 5), lon=slice(1, 4)))
    members = xr.concat([dry, dry * 2], "member").transpose("time", "member", "lat", "lon")
    np.testing.assert_array_equal(lazy.apply(members).isel(member=0), want)


def test_frequency_of_rain(history, observed):
    dry = history.where(history > 3, 0)
    fitted = xdeepsd.fit_correction(dry, observed, nquantiles=20, adapt_freq_thresh=0.1)
    out = fitted.apply(dry)
    shares = [float((da <= 0.1).mean()) for da in (dry, observed, out)]
    assert shares[0] > 0.65
    assert shares[2] == pytest.approx(shares[1], abs=0.01)
    # What was added is at most what was observed where the climate model is dry: never multiplied up.
    added = out.where((dry == 0) & (out > 0))
    assert float(added.max()) <= float(fitted.data["wettest_added"].max())
    assert float(out.mean()) == pytest.approx(float(observed.mean()), rel=0.1)


def test_frequency_by_hand():
    values = np.array([[0, 0.2, 5, 0, 0.1, 9, np.nan]], np.float32)
    uniform = np.array([[0.9, 0.5, 0.5, 0.1, 0.5, 0.5, 0.5]])
    got, added = adapt_frequency(values, uniform, 0.5, *(np.array([v]) for v in (0.3, 0.6, 2.5)))
    assert added.tolist() == [[False, True, False, False, True, False, False]]  # the wettest half of the dry days
    np.testing.assert_allclose(got, [[0, 0.5 + 2 * 1.5 / 2, 5, 0, 0.5 + 2 * 0.5 / 2, 9, np.nan]])


def test_tails_do_not_explode(history, observed, caplog):
    """A cell that is all but dry in the history gets a limited factor; what is far above the history none at all."""
    dry = history.copy()
    dry[:, 0, 0] = dry[:, 0, 0] * 1e-3
    caplog.set_level(logging.INFO)
    fitted = xdeepsd.fit_correction(dry, observed, nquantiles=20)
    assert float(fitted.data["factors"].max()) == 10
    assert "factors are limited to 10" in caplog.text
    scenario = dry.copy()
    scenario[5, 1, 1] = 1000
    out = fitted.apply(scenario)
    assert float(out[5, 1, 1]) == 1000
    assert "1 of 38400 values of 'pr' lie more than 10 times above" in caplog.text
    assert (out <= 10 * scenario).all()
    free = xdeepsd.fit_correction(dry, observed, nquantiles=20, max_tail_factor=None, max_factor=None)
    assert float(free.apply(scenario)[5, 1, 1]) > 1100
    assert float(free.data["factors"].max()) > 100


@pytest.mark.parametrize("align_on", ["year", "date"])
def test_years_of_360_days(history, observed, align_on):
    time = xr.date_range("2001-01-01", periods=DAYS, calendar="360_day", use_cftime=True)
    past = history.assign_coords(time=time)
    fitted = xdeepsd.fit_correction(past, observed, nquantiles=20, align_on=align_on)
    assert fitted.options["calendar"] == "360_day"
    assert fitted.options["days"] == pytest.approx(DAYS, rel=0.03)
    out = fitted.apply(past)
    assert out["time"].dt.calendar == "360_day"
    assert float(out.mean()) == pytest.approx(float(observed.mean()), rel=0.1)
    assert fitted.apply(history).shape == history.shape  # seasons are those of any calendar
    days = xdeepsd.fit_correction(past, observed, group="time.dayofyear", window=31, nquantiles=2)
    assert days.apply(past).notnull().all()
    with pytest.raises(ValueError, match="years of the same length"):
        days.apply(history)


def test_history_on_another_grid_and_in_other_units(history, observed, correction):
    finer = {d: np.repeat(history[d].values, 2) + np.tile([-0.25, 0.25], history.sizes[d]) for d in ("lat", "lon")}
    seconds = (history / 86400).assign_attrs(units="kg m-2 s-1").sel(finer, method="nearest")
    seconds = seconds.assign_coords({d: (d, finer[d], history[d].attrs) for d in finer})
    fitted = xdeepsd.fit_correction(seconds.sortby("lat").isel(lon=slice(2, None)), observed, nquantiles=20)
    assert fitted.data["lat"].equals(correction.data["lat"])
    assert fitted.data["factors"].isel(lon=0).isnull().all()  # not covered
    want = correction.data["factors"].isel(lon=slice(1, None))
    np.testing.assert_allclose(fitted.data["factors"].isel(lon=slice(1, None)), want, rtol=1e-4)


# --- the file ---------------------------------------------------------------------------------------------------------


def test_saved_whole_and_read(correction, tmp_path):
    path = tmp_path / "correction.nc"
    correction.save(path)
    read = xdeepsd.load_correction(path)
    xr.testing.assert_identical(read.data, correction.data)
    assert read.options == correction.options
    assert read.fingerprint() == correction.fingerprint()
    assert [file.name for file in tmp_path.iterdir()] == ["correction.nc"]
    with pytest.raises(FileExistsError, match="overwrite=True"):
        correction.save(path)
    correction.save(path, overwrite=True)
    other = path.read_bytes().replace(b'"kind": "*"', b'"kind": "+"')  # other options than it was saved with
    path.write_bytes(other)
    with pytest.raises(ValueError, match="truncated or changed"):
        xdeepsd.load_correction(path)
    correction.save(path, overwrite=True)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="truncated or changed"):
        xdeepsd.load_correction(path)
    path.write_bytes(content[:-100])
    with pytest.raises(ValueError, match="truncated or changed"):
        xdeepsd.load_correction(path)
    for other in (tmp_path / "rain.nc", tmp_path / "text"):
        make_coarse().to_netcdf(other, engine="h5netcdf") if other.suffix else other.write_text("mine")
        before = other.read_bytes()
        with pytest.raises(FileExistsError, match="not a correction"):
            correction.save(other, overwrite=True)
        with pytest.raises(ValueError, match="is not a correction"):
            xdeepsd.load_correction(other)
        assert other.read_bytes() == before
    with pytest.raises(FileNotFoundError, match="does not exist"):
        xdeepsd.load_correction(tmp_path / "none.nc")


def test_nothing_fitted_is_not_saved(history, observed, tmp_path):
    empty = history.chunk(time=100).where(history < 0)
    with pytest.raises(ValueError, match="no factor in any cell"):
        xdeepsd.fit_correction(empty, observed, nquantiles=20).save(tmp_path / "correction.nc")
    assert not list(tmp_path.iterdir())


# --- downscaling ------------------------------------------------------------------------------------------------------


def test_downscale_corrects_first(history, correction, model, tmp_path):
    correction.save(tmp_path / "correction.nc")
    want = xdeepsd.downscale(correction.apply(history).to_dataset(), model)["pr"]
    seconds = (history / 86400).assign_attrs(units="kg m-2 s-1").to_dataset().isel(lat=slice(None, None, -1))
    with dask.config.set(scheduler=never):
        lazy = xdeepsd.downscale(seconds.chunk(time=100), model, bias_correct=tmp_path / "correction.nc")
    assert lazy["pr"].chunksizes["time"] == (100,) * 8
    np.testing.assert_allclose(lazy["pr"].isel(lat=slice(None, None, -1)) * 86400, want, rtol=1e-4, atol=1e-3)
    same = seconds.deepsd.downscale(model, bias_correct=correction)["pr"]
    np.testing.assert_allclose(same, lazy["pr"], rtol=1e-5, atol=1e-9)
    assert "quantile delta mapping by time.season, fitted on 800 days" in lazy.attrs["xdeepsd_adapted"]
    assert lazy.attrs["xdeepsd_correction"] == correction.fingerprint() == lazy["pr"].attrs["xdeepsd_correction"]
    assert "xdeepsd_correction" not in xdeepsd.downscale(seconds, model).attrs
    audited = xdeepsd.audit(seconds, model, bias_correct=correction)
    assert audited.mean == pytest.approx(float(correction.apply(history).mean()), rel=1e-4)


def test_means_that_are_kept_are_those_of_the_regridded_and_corrected_input(history, correction):
    """On another grid, by a model that keeps coarse means: `coarsen` of the output is what was corrected."""
    stack = make_stack(2, channels=(4, 3), kernels=(3, 1, 3), conserve="multiplicative")
    model = xdeepsd.StackedSRCNN(stack.stages, static=make_static(make_coarse(), 4))
    lat, lon = 50 - 0.5 * np.arange(18), -125 + 0.5 * np.arange(22)
    ds = make_coarse(days=200, nlat=18, nlon=22).assign_coords(lat=lat, lon=lon).to_dataset()
    regridded = xdeepsd.regrid(ds, xr.Dataset(coords={"lat": history["lat"], "lon": history["lon"]}))["pr"]
    want = correction.apply(regridded)
    fine = xdeepsd.downscale(ds.chunk(time=50), model, bias_correct=correction)["pr"]
    np.testing.assert_allclose(xdeepsd.coarsen(fine, 4), want, rtol=1e-4, atol=1e-5)
    assert not np.allclose(regridded, want, rtol=0.1)


def test_a_distribution_is_corrected_too(history, correction):
    stack = make_stack(1, gain=1.0, channels=(4, 3), kernels=(3, 1, 3), head="bernoulli_gamma")
    static = make_static(history, 2)["elevation"]
    want = xdeepsd.distribution(correction.apply(history), stack, static)
    got = history.deepsd.distribution(stack, static, bias_correct=correction)
    for name in want:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-4, atol=1e-5)
    assert got.attrs["xdeepsd_correction"] == correction.fingerprint()


def test_members_are_corrected_alike(history, correction):
    models = [make_stack(1, seed=seed, channels=(4, 3), kernels=(3, 1, 3)) for seed in (0, 1)]
    static = make_static(history, 2)["elevation"]
    got = xdeepsd.downscale(history, models, static, bias_correct=correction)
    want = xdeepsd.downscale(history, models[1], static, bias_correct=correction)
    np.testing.assert_array_equal(got.isel(member=1), want)


def test_resume_notices_another_correction(history, observed, correction, model, tmp_path):
    coarse = history.to_dataset().chunk(time=200)
    xdeepsd.downscale(coarse, model, bias_correct=correction).deepsd.to_zarr(tmp_path / "fine.zarr")
    xdeepsd.downscale(coarse, model, bias_correct=correction).deepsd.to_zarr(tmp_path / "fine.zarr")
    other = xdeepsd.fit_correction(history, observed, nquantiles=10)
    with pytest.raises(ValueError, match="bias correction"):
        xdeepsd.downscale(coarse, model, bias_correct=other).deepsd.to_zarr(tmp_path / "fine.zarr")


def test_on_the_command_line(history, observed, model, tmp_path):
    history.to_netcdf(tmp_path / "history.nc", engine="h5netcdf")
    observed.rename("ppt").to_netcdf(tmp_path / "observed.nc", engine="h5netcdf")
    xdeepsd.save_model(model, tmp_path / "model")
    fitted = xdeepsd.fit_correction(history, observed)
    fitted.save(tmp_path / "correction.nc")
    want = xdeepsd.downscale(history.to_dataset(), model, bias_correct=fitted)["pr"]

    def run(out, *more):
        arguments = ["downscale", tmp_path / "history.nc", tmp_path / "model", tmp_path / out, "--bias-correct", *more]
        return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200"})

    for name in ("correction.nc", "observed.nc"):
        result = run(f"{name}.zarr", tmp_path / name)
        assert result.exit_code == 0, result.output
        np.testing.assert_allclose(xr.open_zarr(tmp_path / f"{name}.zarr")["pr"], want, rtol=1e-5, atol=1e-5)
    observed.isel(time=slice(10)).to_netcdf(tmp_path / "few.nc", engine="h5netcdf")
    result = run("x.zarr", tmp_path / "few.nc")
    assert result.exit_code == 1
    assert "10 days in common" in " ".join(result.output.split())
    assert not (tmp_path / "x.zarr").exists()


# --- errors -----------------------------------------------------------------------------------------------------------


def test_errors_before_any_work(history, observed, correction, model):
    later = observed.assign_coords(time=observed["time"] + np.timedelta64(9000, "D"))
    fit = xdeepsd.fit_correction
    with dask.config.set(scheduler=never):
        for arguments, options, text in [
            ((history, later), {}, "no day in common: 2001-01-01 to 2003-03-11"),
            ((history[:90], observed), {}, "31 days in common of the season MAM|59 days in common"),
            ((history.assign_attrs(units="K"), observed), {}, "The history: The units 'K'"),
            ((history, observed.assign_attrs(units="")), {}, "The observed: The precipitation has no units"),
            ((history * np.nan, observed), {}, "The history: All .* are NaN"),
            ((history, observed.assign_coords(lon=observed["lon"] + 90)), {}, "The history: "),
            ((history.expand_dims(member=2), observed), {}, r"history.isel\(member=0\)"),
            ((history, observed), {"group": "month"}, "group='month'; needed"),
            ((history, observed), {"kind": "x"}, "kind='x'; needed"),
            ((history, observed), {"align_on": "random"}, "align_on='random'; needed"),
            ((history, observed), {"window": 4}, "window=4; needed: an odd number"),
            ((history, observed), {"max_factor": 0.5}, "max_factor=0.5; needed"),
            ((history, observed), {"nquantiles": [0.5, 0.2]}, "ascending numbers"),
        ]:
            with pytest.raises(ValueError, match=text):
                fit(*arguments, **options)
        with pytest.raises(TypeError, match="needed: a Correction, or the path"):
            xdeepsd.downscale(history, model, bias_correct=3)
        with pytest.raises(ValueError, match="lies on another grid"):
            correction.apply(history.assign_coords(lon=history["lon"] + 0.5))
        with pytest.raises(ValueError, match="has no dates"):
            correction.apply(history.drop_vars("time"))
        spring = fit(history, observed, nquantiles=20, group="time.month")
        part = xdeepsd.Correction(spring.data.isel(group=[0, 1]), spring.options)
        with pytest.raises(ValueError, match="days of the month"):
            part.apply(history)


def test_without_xsdba(history, observed, correction, monkeypatch):
    monkeypatch.setitem(sys.modules, "xsdba", None)
    for call in (lambda: xdeepsd.fit_correction(history, observed), lambda: correction.apply(history)):
        with pytest.raises(ImportError, match=r"pip install 'xdeepsd\[bias\]'"):
            call()


@pytest.mark.realdata
def test_echo_g_has_years_of_360_days(real_data):
    """20 years over the east of North America: fitted on the first ten, on real dates, and applied to the last ten."""
    ds = xr.open_dataset(real_data / "gcm" / "pr.sresa2.miub_echo_g.run1.atm.da.nc", chunks={"time": 360})
    history, scenario = ds.isel(time=slice(0, 3600)), ds.isel(time=slice(3600, None))
    coarse = xr.Dataset(coords={"lat": 45.0 + 3 * np.arange(5), "lon": 284.0 + 3 * np.arange(6)})
    real = xdeepsd.regrid(history[["pr"]], coarse)["pr"].load()
    observed = (real * 0.8).assign_attrs(real.attrs).convert_calendar("standard", align_on="year")
    fitted = xdeepsd.fit_correction(history, observed, nquantiles=50, group="time.month")
    assert fitted.data["factors"].chunks is not None
    grid = make_coarse(nlat=5, nlon=6, spacing=3.0).assign_coords(lat=coarse["lat"].values, lon=coarse["lon"].values)
    stack = make_stack(1, channels=(2,), kernels=(3, 3))
    model = xdeepsd.StackedSRCNN(stack.stages, static=make_static(grid, 2))
    plain, corrected = (xdeepsd.audit(scenario, model, bias_correct=given) for given in (None, fitted))
    assert corrected.calendar == "360_day"
    assert corrected.mean == pytest.approx(0.8 * plain.mean, rel=0.01)
    assert corrected.largest == pytest.approx(0.8 * plain.largest, rel=0.2)
    fine = xdeepsd.downscale(scenario.isel(time=slice(0, 720)), model, bias_correct=fitted)["pr"]
    assert fine.sizes == {"time": 720, "lat": 10, "lon": 12}
    assert fine.notnull().all()
