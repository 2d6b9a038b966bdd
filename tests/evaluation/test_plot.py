"""Pictures: they show the numbers that they are given, read no more than they need, and come without pyplot."""

import inspect
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import xdeepsd
from xdeepsd import plot
from xdeepsd.accessor import Pictures
from xdeepsd.evaluation.plot import panels
from xdeepsd.evaluation.plot.curves import styles


@pytest.fixture(scope="module")
def fields():
    """``(truth, coarse, prediction)``: 400 days of a climate with an ocean, the prediction a tenth too wet."""
    climate = xdeepsd.make_climate(years=2, shape=(24, 32)).isel(time=slice(0, 400))
    truth = climate["precipitation"].load()
    return truth, xdeepsd.coarsen(truth, 4), (truth * 1.1).assign_attrs(truth.attrs)


@pytest.fixture(scope="module")
def evaluated(fields):
    truth, coarse, prediction = fields
    return xdeepsd.evaluate(prediction, truth, beside=xdeepsd.baselines(coarse, truth))


def drawn(ax):
    """The values of the map in a panel, NaN where masked."""
    return np.ma.filled(ax.collections[0].get_array().astype(float), np.nan)


def line(figure, label):
    return next(one for one in figure.axes[0].lines if one.get_label() == label)


# --- maps -------------------------------------------------------------------------------------------------------------


def test_a_day_side_by_side(fields, tmp_path):
    truth, coarse, prediction = fields
    day = str(truth["time"].values[7])[:10]
    figure = prediction.deepsd.plot.compare(truth, coarse=coarse, day=day)
    figure.savefig(tmp_path / "maps.png")
    titles = ["coarse", "interpolated", "prediction", "truth", "interpolated less truth", "prediction less truth"]
    assert [ax.get_title() for ax in figure.axes[:6]] == titles
    assert figure.get_suptitle() == day
    between = xdeepsd.interpolate(coarse, truth)
    shown = dict(zip(titles, map(drawn, figure.axes[:6]), strict=True))
    known = [coarse, between, prediction, truth, between - truth, prediction - truth]
    for title, da in zip(titles, known, strict=True):
        np.testing.assert_allclose(shown[title], da.isel(time=7).values, rtol=1e-6, atol=1e-6, err_msg=title)
    scales = [ax.collections[0].norm for ax in figure.axes[:6]]
    assert all((scale.boundaries == scales[0].boundaries).all() for scale in scales[1:4]), "one scale"
    assert scales[4].vmax == scales[5].vmax
    assert scales[5].vmin == -scales[5].vmax, "centred at 0"
    for ax in figure.axes[:6]:
        assert ax.get_aspect() == pytest.approx(1 / np.cos(np.deg2rad(float(truth["lat"].mean()))))
        assert len(ax.collections) == 2, "the coast"


def test_a_map_reads_only_its_day(fields):
    truth, coarse, prediction = fields
    read = []

    def watched(block):
        read.append(len(block))
        return block

    def lazy(da):
        data = da.chunk(time=10).data.map_blocks(watched, dtype=da.dtype, meta=np.empty((0, 0, 0), da.dtype))
        return da.copy(data=data)

    day = str(truth["time"].values[205])[:10]
    one, two = lazy(truth), lazy(prediction)
    read.clear()
    xdeepsd.plot.compare(two, one, coarse=coarse, day=day)
    assert len(read) == 2, "a chunk of each"


def test_other_names_units_and_order_are_the_same_picture(fields):
    truth, _, prediction = fields
    other = (prediction / 86400).assign_attrs(units="kg m-2 s-1", standard_name="precipitation_flux")
    other = other.rename(lat="latitude", lon="longitude", time="day").isel(latitude=slice(None, None, -1))
    plain, turned = (plot.compare(da, truth).axes[0] for da in (prediction, other))
    np.testing.assert_allclose(drawn(plain), drawn(turned), rtol=1e-5)
    single = plot.compare(prediction.isel(time=3), truth.isel(time=3))
    assert single.get_suptitle() == str(truth["time"].values[3])[:10]
    np.testing.assert_allclose(drawn(single.axes[1]), truth.isel(time=3))


def test_members_beside_and_mask(fields):
    truth, _, prediction = fields
    members = xr.concat([prediction, truth], "member").assign_attrs(truth.attrs)
    mask = truth.notnull().any("time") & (truth["lon"] > truth["lon"].mean())
    figure = plot.compare(members, truth, beside={"other": truth}, mask=mask, title="mine")
    assert [ax.get_title() for ax in figure.axes[:4]] == ["other", "prediction", "truth", "prediction less truth"]
    mean = members.mean("member").isel(time=0).where(mask)
    np.testing.assert_allclose(drawn(figure.axes[1]), mean, rtol=1e-6)


def test_maps_that_cannot_be_drawn(fields):
    truth, coarse, prediction = fields
    with pytest.raises(ValueError, match=r"truth has no day '1999-01-01': its days go from .* Type day='2001-01-01'"):
        plot.compare(prediction, truth, day="1999-01-01")
    with pytest.raises(ValueError, match="no day 'spring'"):
        plot.compare(prediction, truth, day="spring")
    with pytest.raises(ValueError, match="Needed: the same cells"):
        plot.compare(coarse, truth)
    with pytest.raises(ValueError, match=r"'rain' has the dims .* Type \.isel\(time=0\)"):
        plot.maps({"rain": truth})
    with pytest.raises(ValueError, match="There is no map to draw"):
        plot.maps({})


@pytest.mark.parametrize("value", [0.0, np.nan, 3e-5, 700.0])
def test_maps_of_one_value(tmp_path, value):
    da = xr.DataArray(np.full((3, 4), value), {"lat": [1.0, 2, 3], "lon": [1.0, 2, 3, 4]}, ("lat", "lon"))
    plot.maps({"one": da}, apart={"less": da - da}).savefig(tmp_path / "one.png")


def test_on_a_projection_of_cartopy(fields, tmp_path):
    crs = pytest.importorskip("cartopy.crs", reason="cartopy is not installed")
    truth, coarse, prediction = fields
    figure = plot.compare(prediction, truth, coarse=coarse, projection=crs.LambertConformal(-121, 44))
    figure.savefig(tmp_path / "lambert.png")


@given(hnp.arrays(np.float64, 20, elements=st.floats(1e-9, 1e6) | st.sampled_from([0.0, np.nan])))
def test_steps_rise_to_the_top_for_any_map(values):
    steps = panels._steps(values)
    assert len(steps) >= 3
    assert (np.diff(steps) > 0).all()
    wet = values[values > 1e-3 * np.nanmax(values)] if np.nansum(values) > 0 else np.array([])
    if wet.size:
        top = np.quantile(wet, 0.995)
        assert 0.5 * top <= steps[-1] <= top * (1 + 1e-9)


# --- curves -----------------------------------------------------------------------------------------------------------


def test_quantiles(evaluated, tmp_path):
    figure = plot.quantiles(evaluated)
    figure.savefig(tmp_path / "q.png")
    x, y = line(figure, "prediction").get_data()
    seen = evaluated["observed_quantile"].sel(name="prediction")
    wet = seen >= 1
    np.testing.assert_allclose(x, seen[wet])
    np.testing.assert_allclose(y, (evaluated["predicted_quantile"].sel(name="prediction") / seen)[wet])
    assert (np.asarray(y) > 1).all(), "a tenth too wet"


def test_spectra(fields, tmp_path):
    truth, coarse, prediction = fields
    found = xdeepsd.compare_spectra(prediction, truth, beside={"bilinear": xdeepsd.interpolate(coarse, truth)})
    figure = plot.spectra(found, cell=4.0)
    figure.savefig(tmp_path / "s.png")
    x, y = line(figure, "truth").get_data()
    np.testing.assert_allclose(x, found["wavelength"][:-1] * 4)
    np.testing.assert_allclose(y, found["spectrum"].sel(name="truth")[:-1])
    assert figure.axes[0].get_xlabel() == "wavelength (km)"


def test_ranks(fields):
    truth, _, prediction = fields
    members = xr.concat([prediction, truth * 0.5, truth * 2], "member").assign_attrs(truth.attrs)
    counts = xdeepsd.rank_histogram(members, truth)
    for given_ in (counts, xdeepsd.evaluate(members, truth)):
        bars = [bar.get_height() for bar in plot.ranks(given_).axes[0].patches]
        np.testing.assert_allclose(bars, counts / counts.sum())


def test_the_seasonal_cycle(fields):
    truth, _, prediction = fields
    lazy = {"prediction": prediction.chunk(time=50), "truth": truth}
    figure = plot.seasonal_cycle(lazy)
    area = np.cos(np.deg2rad(truth["lat"]))
    mean = truth.weighted(area).mean(("lat", "lon")).groupby("time.month").mean()
    np.testing.assert_allclose(line(figure, "truth").get_ydata(), mean, rtol=1e-4)
    np.testing.assert_allclose(line(figure, "prediction").get_ydata(), 1.1 * mean, rtol=1e-4)
    of_days = plot.seasonal_cycle({"truth": truth.weighted(area).mean(("lat", "lon"))})
    np.testing.assert_allclose(line(of_days, "truth").get_ydata(), mean, rtol=1e-6)
    with pytest.raises(ValueError, match="without dates"):
        plot.seasonal_cycle({"truth": truth.drop_vars("time")})


def test_errors_by_bins(fields):
    truth, coarse, prediction = fields
    table = xdeepsd.bin_errors({"prediction": prediction, "bilinear": xdeepsd.interpolate(coarse, truth)}, truth)
    for error in ("rmse", "mae"):
        figure = plot.bins(table, error)
        rows = table[(table["name"] == "bilinear") & (table["rank"] > 0)].sort_values("low")
        np.testing.assert_allclose(line(figure, "bilinear").get_ydata(), rows[error])
    with pytest.raises(ValueError, match="without mse"):
        plot.bins(table, "mse")


def test_differences(evaluated):
    pytest.importorskip("scores")
    table = xdeepsd.differences(evaluated)
    figure = plot.differences(table, "mae")
    rows = table[table["error"] == "mae"]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == list(rows["name"])
    spans = [one.get_xdata() for one in figure.axes[0].lines[:-1:2]]
    np.testing.assert_allclose(spans, rows[["low", "high"]])
    with pytest.raises(ValueError, match="no differences of 'bias'"):
        plot.differences(table, "bias")


def history(**more):
    steps = np.arange(2, 9, 2)
    return pd.DataFrame({"step": steps, "loss": 1 / steps, **more})


def test_training(tmp_path):
    validated = history(rmse=[0.9, 0.4, 0.3, 0.35], rmse_interpolation=0.5)
    figure = plot.training(pd.concat([validated.assign(stage=k, seed=s) for k in (0, 1) for s in (0, 1)]))
    figure.savefig(tmp_path / "t.png")
    assert [ax.get_title() for ax in figure.axes] == ["stage 0", "stage 1"]
    best = next(one for one in figure.axes[0].lines if one.get_markersize() == 8)
    assert (best.get_xdata()[0], best.get_ydata()[0]) == (6, 0.3)
    alone = plot.training(history())
    assert alone.axes[0].get_ylabel() == "training loss"
    with pytest.raises(ValueError, match="Needed: step and loss"):
        plot.training(pd.DataFrame({"a": [1]}))


# --- all of them ------------------------------------------------------------------------------------------------------


def test_what_lacks_its_numbers_is_told(fields, evaluated):
    truth, _, prediction = fields
    by = xdeepsd.evaluate(prediction, truth, by="season")
    with pytest.raises(ValueError, match=r"Leave by out"):
        plot.quantiles(by)
    with pytest.raises(ValueError, match=r"rank_histogram .* with members for ranks"):
        plot.ranks(evaluated)
    with pytest.raises(ValueError, match="spectrum with the dims"):
        plot.spectra(evaluated)


def test_what_is_judged_stands_out_and_kept_means_are_dashed():
    found = dict(styles(["prediction", "bilinear", "bilinear, means kept", "truth"]))
    assert found["truth"]["color"] == "black"
    assert found["bilinear"]["color"] == found["bilinear, means kept"]["color"] != found["prediction"]["color"]
    assert found["bilinear, means kept"]["ls"] == "--"
    assert found["prediction"]["lw"] > found["bilinear"]["lw"]


def test_completion_shows_it(fields):
    truth = fields[0]
    assert "plot" in dir(truth.deepsd)
    assert "compare" in dir(truth.deepsd.plot)
    method, function = (inspect.signature(f).parameters for f in (Pictures.compare, plot.compare))
    assert list(method)[1:] == list(function)[1:]
    assert set(plot.__all__) <= set(dir(xdeepsd.plot))


def test_matplotlib_is_imported_for_a_picture_and_pyplot_never():
    code = """
import sys, numpy as np, xarray as xr, xdeepsd
draw = xdeepsd.plot.maps
print("matplotlib" in sys.modules)
draw({"a": xr.DataArray(np.ones((2, 2)), {"lat": [0.0, 1], "lon": [0.0, 1]}, ("lat", "lon"))})
print("matplotlib.pyplot" in sys.modules)
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["False", "False"]
