"""fetch_prism and `xdeepsd fetch` against a real server on loopback that misbehaves on demand."""

import multiprocessing
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import filelock
import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from prism_server import SHAPE, PrismServer, map_of
from test_prism import bil_members, write_zip
from typer.testing import CliRunner

import xdeepsd
from xdeepsd.cli import app
from xdeepsd.prism import fetch
from xdeepsd.prism import files as prism
from xdeepsd.prism import names as prism_names
from xdeepsd.prism.fetch import fetch_prism

ROOT = Path(__file__).resolve().parents[2]
DAYS = pd.date_range("2011-01-01", "2011-01-08")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server():
    with PrismServer() as service:
        service.publish("2011-01-01", "2011-01-08")
        yield service


@pytest.fixture
def out(tmp_path):
    return tmp_path / "prism.zarr"


def get(server, out, start="2011-01-01", end="2011-01-08", variable="ppt", **options):
    options = {"region": server.region, "resolution": server.resolution, "pace": 0, "timeout": 30} | options
    return fetch_prism(out, variable, start, end, base_url=server.url, **options)


def check(out, server, held, missing=(), in_flight=0):
    """Check that the store holds exactly these days, complete, and that all others are NaN with release 0.

    Up to ``in_flight`` days may have been killed after their map was written, but before their release was.
    """
    ds = xr.open_zarr(out, chunks=None)
    days = pd.DatetimeIndex(ds["time"])
    assert days.equals(pd.date_range("1981-01-01", days[-1]))
    for day in held:
        one = ds.sel(time=day)
        np.testing.assert_array_equal(one["ppt"].values, map_of(day, server.releases[day]))
        assert one["ppt_release"] == server.releases[day]
        assert pd.Timestamp(one["ppt_release_date"].values) == server.release_date(day)
    others = days.difference(list(held))
    assert (ds["ppt_release"].sel(time=others) == 0).all()
    assert set(missing) <= set(others)
    written = [day for day in others if chunk_of(out, day).exists()]
    assert len(written) <= in_flight
    for day in written:
        np.testing.assert_array_equal(ds["ppt"].sel(time=day).values, map_of(day, server.releases[day]))
    absent = others.difference(written)
    assert bool(ds["ppt_release_date"].sel(time=absent).isnull().all())
    # None of these has a chunk: if some read as missing, all do.
    assert bool(ds["ppt"].sel(time=absent[[0, -1]] if len(absent) else absent).isnull().all())


def chunk_of(out, day, variable="ppt"):
    """The file of one day's map."""
    return out / variable / "c" / str((day - pd.Timestamp("1981-01-01")).days) / "0" / "0"


# ---------------------------------------------------------------------------------------------------- a good service


def test_a_map_without_bytes_is_fetched_again(server, out):
    get(server, out)
    chunk_of(out, DAYS[3]).write_bytes(b"")
    assert get(server, out).fetched == [DAYS[3]]
    check(out, server, DAYS)


def test_a_period_and_again(server, out):
    report = get(server, out)
    assert report.fetched == list(DAYS)
    assert report.complete
    assert report.megabytes > 0
    check(out, server, DAYS)
    assert len(server.asked) == 8
    again = get(server, out)
    assert (again.fetched, again.held) == ([], list(DAYS))
    assert len(server.asked) == 8  # days already held in their release were not requested
    assert server.agents == {f"xdeepsd/{xdeepsd.__version__} (python-httpx/{fetch.httpx.__version__})"}


def test_releases_are_asked_first_and_once(server, out):
    get(server, out)
    assert server.requests[0].endswith("/releaseDate/hi/4km/ppt/20110101/20110108?json=true")
    assert server.requests[1].endswith("/hi/4km/ppt/20110101")
    assert sum("releaseDate" in url for url in server.requests) == 1


def test_one_day(server, out):
    assert get(server, out, end="2011-01-01").fetched == [DAYS[0]]
    assert server.requests[0].endswith("/ppt/20110101?json=true")  # a single row that is not in a list


def test_only_newer_releases_are_fetched_again(server, out):
    server.releases |= {DAYS[2]: 3, DAYS[5]: 1}
    get(server, out)
    server.releases |= {DAYS[2]: 4, DAYS[5]: 2}
    server.requests.clear()
    assert get(server, out).fetched == [DAYS[2], DAYS[5]]
    assert server.asked == ["20110103", "20110106"]
    check(out, server, DAYS)


def test_the_store_is_plain_zarr_with_cf_metadata(server, out, recwarn):
    get(server, out)
    ds = xr.open_zarr(out)
    assert not [w for w in recwarn if "onsolidated" in str(w.message)]
    assert ds["ppt"].dims == ("time", "lat", "lon")
    assert ds["ppt"].chunks == ((1,) * ds["time"].size, (SHAPE[0],), (SHAPE[1],))
    assert ds["ppt"].dtype == np.float32
    assert ds["ppt"].attrs["units"] == "mm day-1"
    assert ds["ppt"].attrs["standard_name"] == "lwe_precipitation_rate"
    assert ds["ppt"].attrs["ancillary_variables"] == "ppt_release ppt_release_date"
    np.testing.assert_array_equal(ds["lat"].values, (528 - np.arange(SHAPE[0])) / 24)
    np.testing.assert_array_equal(ds["lon"].values, (-3840 + np.arange(SHAPE[1])) / 24)
    np.testing.assert_array_equal(ds["time_bnds"].values[:, 1], ds["time"].values + np.timedelta64(12, "h"))
    assert ds["time"].attrs["bounds"] == "time_bnds"
    assert "Oregon State University" in ds.attrs["source"]
    assert ds["ppt"].encoding["compressors"]
    assert (out / "zarr.json").exists()


@pytest.mark.parametrize(
    "first", [("2011-01-03", "2011-01-04"), ("2011-01-07", "2011-01-08"), ("2011-01-01", "2011-01-02")]
)
def test_the_period_grows_in_both_directions(server, out, first):
    get(server, out, *first)
    get(server, out, "2011-01-02", "2011-01-06")
    get(server, out)
    check(out, server, DAYS)
    assert sorted(server.asked) == [f"{day:%Y%m%d}" for day in DAYS]  # each day once
    assert sorted(p.name for p in out.parent.iterdir()) == [".prism.zarr.lock", "prism.zarr"]


def test_a_gap_between_two_periods_is_missing(server, out):
    get(server, out, "2011-01-07", "2011-01-08")
    get(server, out, "2011-01-02", "2011-01-03")
    check(out, server, DAYS[[1, 2, 6, 7]], missing=DAYS[3:6])


@settings(max_examples=8)
@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), min_size=1, max_size=4))
def test_any_sequence_of_periods(tmp_path_factory, periods):
    out = tmp_path_factory.mktemp("any") / "prism.zarr"
    held = set()
    with PrismServer() as server:
        server.publish("2011-01-01", "2011-01-08")
        for ends in periods:
            first, last = sorted(ends)
            get(server, out, DAYS[first], DAYS[last])
            held |= set(DAYS[first : last + 1])
        assert len(server.asked) == len(held)
        check(out, server, sorted(held))


def test_open_prism_gives_the_days_that_are_there(server, out):
    get(server, out, "2011-01-07", "2011-01-08")
    get(server, out, "2011-01-02", "2011-01-03")
    with pytest.raises(ValueError, match=r"ppt is missing on 3 of the 7 days .*: 2011-01-04 to 2011-01-06 \(3 days\)"):
        prism.open_prism(out)
    ds = prism.open_prism(out, allow_missing=True)
    assert pd.DatetimeIndex(ds["time"]).equals(DAYS[[1, 2, 6, 7]])
    np.testing.assert_array_equal(ds["ppt"].values, np.stack([map_of(day) for day in ds["time"].to_index()]))
    get(server, out)
    xr.testing.assert_identical(prism.open_prism(out), xr.open_zarr(out).sel(time=DAYS))
    other = out.parent / "other.zarr"
    xr.Dataset({"ppt": ("time", [1.0])}).to_zarr(other, consolidated=False)
    with pytest.raises(ValueError, match=r"other\.zarr is not a store of xdeepsd fetch"):
        prism.open_prism(other)


def test_several_variables_and_the_elevation_in_one_store(server, out, tmp_path):
    elevation = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    name = "PRISM_us_dem_4km_bil"
    server.files[f"{name}.zip"] = write_zip(tmp_path / "dem.zip", bil_members(name, elevation)).read_bytes()
    server.region = "us"
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(prism_names.GRIDS, ("us", "4km"))  # the small grid stands in for it
        assert get(server, out, None, None, variable="elevation").complete
        assert list(xr.open_zarr(out).data_vars) == ["elevation"]
        get(server, out, "2011-01-02", "2011-01-03")
        get(server, out, "2011-01-01", "2011-01-03", variable="tmax")
        count = len(server.requests)
        assert get(server, out, None, None, variable="elevation").complete
    assert len(server.requests) == count  # held
    ds = xr.open_zarr(out)
    np.testing.assert_array_equal(ds["elevation"].values, elevation)
    assert ds["time"].values[-1] == DAYS[2]
    ds = ds.sel(time=DAYS[:3])
    assert ds["ppt_release"].values.tolist() == [0, 8, 8]
    assert ds["tmax_release"].values.tolist() == [8, 8, 8]
    assert ds["ppt"].isel(time=0).isnull().all()
    np.testing.assert_array_equal(ds["tmax"].isel(time=0).values, map_of(DAYS[0]))


def test_requests_are_paced(server, out):
    get(server, out, end="2011-01-03", pace=0.15)
    assert len(server.times) == 4
    assert min(np.diff(server.times)) > 0.14


def test_days_not_published_yet(server, out):
    today = pd.Timestamp.now("UTC").tz_localize(None).normalize()
    server.releases.clear()
    server.publish(str(today - pd.Timedelta(days=5)), str(today - pd.Timedelta(days=2)), 1)
    published = sorted(server.releases)
    report = get(server, out, today - pd.Timedelta(days=5), today + pd.Timedelta(days=3))
    assert report.fetched == published
    assert report.unpublished == list(pd.date_range(today - pd.Timedelta(days=1), today + pd.Timedelta(days=3)))
    assert not report.complete
    check(out, server, published)
    assert xr.open_zarr(out)["time"].values[-1] == published[-1]  # days that do not exist yet are not on the axis


def test_a_hole_in_what_is_published(server, out):
    del server.releases[DAYS[3]]
    report = get(server, out)
    assert report.unpublished == [DAYS[3]]
    assert f"{DAYS[3]:%Y%m%d}" not in server.asked


# ------------------------------------------------------------------------------------------------------ misbehaviour

# what the server does, number of requests for that day, the reported cause
RECOVERS = [("503", 2), ("cut", 2), ("truncated", 2), ("hang up", 2), ("nothing", 2), ("slow", 2)]
BAD = [
    ("503", 5, "503"),
    ("404", 1, "404"),
    ("cut", 2, "RemoteProtocolError"),
    ("slow", 2, "ReadTimeout"),
    ("drip", 2, ": aborted"),
    ("truncated", 2, r"a broken zip of \d+ bytes"),
    ("nothing", 2, "an empty answer"),
    ("empty", 1, "an empty zip"),
    ("no grid", 1, "the zip holds no grid, not ppt of 2011-01-03, hi, 4km"),
    ("wrong shape", 1, "wrong grid: 13 x 20 cells of 1/24 degree .*; needed: 12 x 20"),
    ("wrong corner", 1, "wrong grid: .* -159.9583 E .*; needed: .* -160.0000 E"),
    ("wrong step", 1, "its grid starts at"),
    ("wrong day", 1, r"the zip holds prism_ppt_hi_25m_20110104\.tif, not ppt of 2011-01-03"),
    ("wrong day in tags", 1, "does not hold the day in its name"),
    ("wrong variable", 1, r"the zip holds prism_tmax_hi_25m_20110103\.tif"),
    ("no value", 1, "the map has no value"),
]


@pytest.mark.parametrize(("what", "requests"), RECOVERS, ids=lambda x: str(x))
def test_what_is_asked_again(server, out, what, requests):
    server.mischief[DAYS[2]] = [what]
    report = get(server, out, timeout=1 if what == "slow" else 30)
    assert report.complete
    assert server.asked.count("20110103") == requests
    check(out, server, DAYS)


@pytest.mark.parametrize(("what", "requests", "cause"), BAD, ids=[what for what, _, _ in BAD])
def test_a_bad_day_never_enters_and_the_next_run_fetches_only_it(server, out, what, requests, cause):
    server.mischief[DAYS[2]] = [what] * 9
    report = get(server, out, timeout={"drip": 0.3, "slow": 1}.get(what, 30))
    assert list(report.failed) == [DAYS[2]]
    assert re.search(cause, report.failed[DAYS[2]])
    assert "vsimem" not in report.failed[DAYS[2]]
    assert server.asked.count("20110103") == requests
    others = DAYS.delete(2)
    assert report.fetched == list(others)
    check(out, server, others, missing=[DAYS[2]])
    server.mischief.clear()
    server.requests.clear()
    assert get(server, out).fetched == [DAYS[2]]
    assert server.asked == ["20110103"]
    check(out, server, DAYS)


@pytest.mark.parametrize(
    ("what", "text"),
    [("refusal", "more than twice in one day"), ("html", "maintenance"), ("429", "status 429: slow down")],
)
def test_a_refusal_stops_at_once(server, out, what, text):
    server.mischief[DAYS[4]] = [what]
    report = get(server, out)
    assert text in report.stopped
    assert server.asked[-1] == "20110105"
    assert server.asked.count("20110105") == 1
    assert (report.fetched, report.not_tried) == (list(DAYS[:4]), list(DAYS[4:]))
    check(out, server, DAYS[:4], missing=DAYS[4:])
    assert get(server, out).fetched == list(DAYS[4:])
    check(out, server, DAYS)


def test_a_first_day_that_is_bad_makes_no_store(server, out):
    server.mischief[DAYS[0]] = ["empty"]
    assert list(get(server, out, end="2011-01-01").failed) == [DAYS[0]]
    assert not out.exists()


def test_a_service_that_is_down(server, out, monkeypatch):
    server.mischief |= {day: ["hang up"] * 9 for day in DAYS}
    report = get(server, out)
    assert "No answer for 5 days in a row" in report.stopped
    assert report.not_tried == list(DAYS[5:])
    server.release_mischief = ["503"] * 5
    with pytest.raises(fetch.httpx.HTTPStatusError, match="503"):
        get(server, out)
    server.release_mischief = ["text"]
    with pytest.raises(PermissionError, match=r"does not list its releases .*Database is not available"):
        get(server, out)
    with pytest.raises(fetch.httpx.ConnectError):
        fetch_prism(out, "ppt", "2011-01-01", "2011-01-02", base_url="http://127.0.0.1:9", pace=0, region="hi")


def test_back_off_grows(server, out):
    server.mischief[DAYS[0]] = ["503"] * 4
    get(server, out, end="2011-01-01", pace=0.05)
    waits = np.diff(server.times[1:])
    assert (waits >= np.array([0.1, 0.2, 0.4, 0.8])).all()


# --------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"variable": "rain"}, "variable is 'rain'. Needed: one of ppt, tmin"),
        ({"resolution": "1km"}, "resolution is '1km'. Needed: one of 4km, 800m, 400m"),
        ({"region": "ca"}, "region is 'ca'. Needed: one of us, ak, hi, pr"),
        ({"start": "1980-12-31"}, "Needed: .* from 1981-01-01"),
        ({"start": "2011-01-09"}, "Needed: an end not before the start"),
        ({"start": "2011-02-31"}, "Needed: dates such as 2014-01-01"),
        ({"end": None}, "Needed: both. Type start="),
        ({"variable": "elevation"}, "no elevation for 'hi'"),
    ],
)
def test_what_cannot_be_asked(server, out, options, text):
    with pytest.raises(ValueError, match=text):
        get(server, out, **options)
    assert server.requests == []


def test_a_store_of_something_else(server, out):
    get(server, out)
    server.requests.clear()
    with pytest.raises(ValueError, match=r"holds region hi at 4km, not hi at 800m.*type another out"):
        get(server, out, resolution="800m")
    other = out.parent / "other.zarr"
    xr.Dataset({"ppt": ("time", [1.0])}).to_zarr(other, consolidated=False)
    with pytest.raises(ValueError, match=r"other\.zarr exists, but is not a store of xdeepsd fetch"):
        get(server, other)
    mine = out.parent / "folder" / "mine.partial"
    mine.parent.mkdir()
    mine.touch()
    with pytest.raises(ValueError, match="exists, but is not a store of xdeepsd fetch"):
        get(server, out.parent / "folder")
    assert mine.exists()
    assert server.requests == []


def test_a_store_on_another_grid(server, out, monkeypatch):
    get(server, out)
    monkeypatch.setitem(prism_names.GRIDS, ("hi", "4km"), prism_names.GRIDS["us", "4km"])
    with pytest.raises(ValueError, match=r"is on another grid: 12 x 20 .*Needed: 621 x 1405"):
        get(server, out)


def test_a_store_that_is_not_a_local_folder(server):
    with pytest.raises(ValueError, match=r"out is 's3://bucket/prism\.zarr'\. Needed: a local folder"):
        get(server, "s3://bucket/prism.zarr")


def test_two_at_the_same_store(server, out):
    with (
        filelock.FileLock(out.with_name(".prism.zarr.lock")),
        pytest.raises(ValueError, match="Another xdeepsd fetch is writing to"),
    ):
        get(server, out)


# ---------------------------------------------------------------------------------------------------- interruptions


def test_a_file_system_without_hard_links(server, out, monkeypatch):
    def refuse(source, target, **_):
        if os.path.lexists(target):
            raise FileExistsError(target)
        raise PermissionError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    get(server, out, "2011-01-03", "2011-01-04")
    get(server, out)
    check(out, server, DAYS)
    assert len(server.asked) == 8


def command(server, out, *arguments):
    return [
        sys.executable, "-m", "xdeepsd", "fetch", "--out", str(out), "--variable", "ppt", "--region", server.region,
        "--base-url", server.url, "--pace", "0", "--start", "2011-01-01", *arguments,
    ]  # fmt: skip


def killed_at(process, server, count, pause):
    """Kill ``process`` with signal 9 soon after the server has seen ``count`` requests; return whether it still ran."""
    while process.is_alive() and len(server.requests) < count:
        time.sleep(0.001)
    time.sleep(pause)
    ran = process.is_alive()
    process.kill()
    process.join()
    return ran


@pytest.mark.slow
def test_kill_9_at_random_moments(out):
    """After each kill the store is complete except for the day in flight, the only one requested twice."""
    # A fresh process each time, without importing everything anew.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["xdeepsd.prism.fetch"])
    chance = random.Random(3)
    kills = 0
    with PrismServer() as server:
        days = server.publish("2011-01-01", "2011-02-28")
        server.delay = 0.005
        # Most of these end dates make the axis longer.
        for start, end in [(5, 8), (0, 12), (10, 18), (10, 24), (0, 30), (20, 40), *[(0, 58)] * 40]:
            options = {"region": "hi", "pace": 0, "base_url": server.url}
            process = context.Process(target=fetch_prism, args=(out, "ppt", days[start], days[end]), kwargs=options)
            process.start()
            kills += killed_at(process, server, len(server.requests) + chance.randint(1, 9), chance.random() * 0.03)
            # At any moment marked days are complete, and all others are missing except one day in flight per kill.
            store = xr.open_zarr(out, chunks=None) if (out / "zarr.json").exists() else {}
            if "ppt" in store:  # the arrays appear together, once all of them are whole
                marked = pd.DatetimeIndex(store["time"].values[store["ppt_release"].values > 0])
                check(out, server, marked, in_flight=kills)
                assert len(set(server.asked)) - len(marked) <= kills
            if process.exitcode == 0 and (start, end) == (0, 58):
                break
        check(out, server, days)
    assert kills >= 8
    assert len(server.asked) <= len(days) + kills


def test_a_map_without_its_release_is_fetched_again(server, out):
    get(server, out)
    zarr.open_group(out)["ppt_release"][-5] = 0
    check(out, server, DAYS.delete(3), in_flight=1)
    assert get(server, out).fetched == [DAYS[3]]
    check(out, server, DAYS)


def test_kill_9_of_the_command(server, out):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"}
    server.mischief[DAYS[3]] = ["silent"]
    process = subprocess.Popen(command(server, out, "--end", "2011-01-08"), env=environment)
    while process.poll() is None and len(server.asked) < 4:
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -9
    report = get(server, out)
    assert len(report.held) == 3
    assert len(server.asked) == 9  # includes the day in flight
    check(out, server, DAYS)


# ------------------------------------------------------------------------------------------------------ command line


def run(server, out, *arguments):
    result = CliRunner().invoke(app, command(server, out, *arguments)[3:])
    return result, result.stdout, result.stderr


def test_command(server, out):
    result, text, _ = run(server, out, "--end", "2011-01-08")
    assert result.exit_code == 0
    assert "8 days of ppt fetched" in text
    assert "Oregon State University" in text
    result, text, _ = run(server, out, "--end", "2011-01-08")
    assert result.exit_code == 0
    assert "0 days of ppt fetched, 8 held before (0.0 MB)" in text


def test_command_lists_bad_days_and_fails(server, out):
    server.mischief |= {DAYS[1]: ["empty"], DAYS[3]: ["wrong shape"]}
    result, text, errors = run(server, out, "--end", "2011-01-08")
    assert result.exit_code == 1
    assert "Failed (2):" in errors
    assert re.search(r"2011-01-02  an empty zip\n\s+2011-01-04  wrong grid: 13 x 20", errors)
    assert "Run the same command again" in errors
    assert "6 days of ppt fetched" in text
    assert run(server, out, "--end", "2011-01-08")[0].exit_code == 0


def test_command_stops_when_refused(server, out):
    server.mischief[DAYS[6]] = ["refusal"]
    result, _, errors = run(server, out, "--end", "2011-01-08")
    assert result.exit_code == 1
    assert "Stopped. The service refuses; it answers: You have tried to download" in errors
    assert "Not tried (2): 2011-01-07 to 2011-01-08 (2 days)" in errors


def test_command_and_days_not_published(server, out):
    del server.releases[DAYS[3]]
    result, _, errors = run(server, out, "--end", "2011-01-08")
    assert result.exit_code == 1
    assert "Not published (1): 2011-01-04." in errors
    assert run(server, out, "--end", "2011-01-08", "--allow-missing")[0].exit_code == 0


def test_command_with_bad_input(server, out):
    result, _, errors = run(server, out, "--end", "2010-01-01")
    assert result.exit_code == 1
    assert "Needed: an end not before the start" in errors
    assert "Traceback" not in errors


def test_progress_shows_days_megabytes_and_time_left(server, out, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    get(server, out, progress=True)
    text = capsys.readouterr().out
    assert "8/8" in text
    assert re.search(r"0\.0 MB", text)
    assert "left" in text


@pytest.mark.parametrize("kept", [0, 0.5])
def test_any_file_of_a_store_cut_off(server, out, kept):
    """The same call makes the file whole again, or says that the store is damaged and leaves all files as they are."""
    get(server, out)
    whole = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    for file, content in whole.items():
        if kept and file.name.isdigit():  # a chunk has no checksum
            continue
        file.write_bytes(content[: int(kept * len(content))])
        cut = {file: file.read_bytes() for file in whole}
        if file.relative_to(out).parts[:2] == ("ppt", "c"):
            get(server, out)
        else:
            with pytest.raises(ValueError, match=re.escape(str(out))):
                get(server, out)
            assert {file: file.read_bytes() for file in whole} == cut, file
            file.write_bytes(content)
        assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == whole, file


# ------------------------------------------------------------------------------------------------------- real files


@pytest.mark.realdata
def test_the_service_gives_out_the_real_files(real_data, out):
    """The real COG zip, a real cut BIL zip, a real empty zip, a real refusal, and the real grid."""
    good = (real_data / "prism" / "prism_ppt_us_25m_20251103.zip").read_bytes()
    bad = {name: (real_data / "prism_bad" / f"{name}.zip").read_bytes()
           for name in ("PRISM_ppt_stable_4kmD2_20120101_bil", "empty", "bad")}  # fmt: skip
    day = pd.Timestamp("2025-11-03")
    with PrismServer(region="us") as server:
        server.publish("2025-11-02", "2025-11-04", 1)
        server.files |= {"ppt/20251102": bad["empty"], "ppt/20251103": good, "ppt/20251104": bad["bad"]}
        report = get(server, out, "2025-11-02", "2025-11-04")
        assert report.fetched == [day]
        assert report.failed == {pd.Timestamp("2025-11-02"): "an empty zip"}
        assert "more than twice in one day" in report.stopped
        server.releases[pd.Timestamp("2012-01-01")] = 8
        server.files["ppt/20120101"] = bad["PRISM_ppt_stable_4kmD2_20120101_bil"]
        failed = get(server, out.with_name("cut.zarr"), "2012-01-01", "2012-01-01").failed
        assert "is truncated: 3480082 bytes of 3490020" in failed[pd.Timestamp("2012-01-01")]
        server.files["ppt/20251104"] = good  # the previous day in its place
        assert "the zip holds prism_ppt_us_25m_20251103.tif" in str(get(server, out, day, "2025-11-04").failed)
        server.releases[pd.Timestamp("2011-01-01")] = 8
        old = real_data / "prism" / "small_PRISM_ppt_stable_4kmD2_20110101_bil.zip"
        server.files["ppt/20110101"] = old.read_bytes()
        failed = get(server, out, "2011-01-01", "2011-01-01").failed
        assert "wrong grid: 228 x 246" in failed[pd.Timestamp("2011-01-01")]
    ds = xr.open_zarr(out)
    files = prism.open_prism(real_data / "prism" / "prism_ppt_us_25m_20251103.zip")
    xr.testing.assert_identical(ds["ppt"].sel(time=[day]).drop_attrs().load(), files["ppt"].drop_attrs().load())
    np.testing.assert_array_equal(ds["lat"], files["lat"])
    np.testing.assert_array_equal(ds["lon"], files["lon"])


@pytest.mark.realdata
def test_the_elevation_on_the_real_grid(real_data, out, tmp_path):
    elevation = xr.open_dataset(real_data / "prism" / "prism_elevation_4km.nc")["elevation"].values
    name = "PRISM_us_dem_4km_bil"
    header = (
        "BYTEORDER I\nLAYOUT BIL\nNROWS 621\nNCOLS 1405\nNBANDS 1\nNBITS 32\nBANDROWBYTES 5620\nTOTALROWBYTES 5620\n"
        "PIXELTYPE SIGNEDINT\nULXMAP -125\nULYMAP 49.9166666666687\nXDIM 0.04166666666667\nYDIM 0.04166666666667\n"
        "NODATA -9999\n"
    )
    whole = np.where(np.isnan(elevation), -9999, np.round(elevation)).astype("<i4")
    members = {f"{name}.bil": whole.tobytes(), f"{name}.hdr": header.encode()}
    with PrismServer(region="us") as server:
        server.files[f"{name}.zip"] = write_zip(tmp_path / "dem.zip", members).read_bytes()
        result = CliRunner().invoke(
            app, ["fetch", "--out", str(out), "--variable", "elevation", "--base-url", server.url, "--pace", "0"]
        )
    assert result.exit_code == 0, result.stderr
    np.testing.assert_array_equal(xr.open_zarr(out)["elevation"].values, np.round(elevation))
