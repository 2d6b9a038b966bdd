"""Damaged files: each is a ValueError that names it, takes bounded memory, and is never taken for another map."""

import random
import re
import tracemalloc
import zipfile
from io import BytesIO
from pathlib import Path

import dask
import numpy as np
import pytest
import rasterio
import xarray as xr
from prism_server import SHAPE, day_zip, map_of, tif
from test_prism import DAY, asc_members, bil_members, netcdf, old_stem, write_files, write_zip

from xdeepsd.prism import raster as prism_files
from xdeepsd.prism.files import open_prism
from xdeepsd.prism.names import most_bytes

NEW_NAME = f"prism_ppt_us_25m_{DAY:%Y%m%d}"


def damaged(content: bytes, seed: int, keep: int = 0) -> bytes:
    """Flip, replace, remove or insert some bytes, or cut off the end; the first ``keep`` stay."""
    chance = random.Random(seed)
    changed = bytearray(content)
    for _ in range(chance.choice([1, 1, 1, 3])):
        i, some = chance.randrange(keep, len(changed)), chance.randrange(1, 30)
        match chance.randrange(6):
            case 0 | 1:
                changed[i] ^= 1 << chance.randrange(8)
            case 2:
                changed[i] = chance.choice([0, 255])
            case 3:
                changed[i : i + some] = chance.randbytes(some)
            case 4:
                del changed[i : i + some]
            case 5 if chance.random() < 0.3:
                del changed[i + some :]
    return bytes(changed)


def header_field(content: bytes, local: int, central: int, value: int) -> bytes:
    """A zip with a field of two bytes set in the headers of all of its members."""
    changed = bytearray(content)
    for signature, offset in ((b"PK\x03\x04", local), (b"PK\x01\x02", central)):
        for found in re.finditer(re.escape(signature), content):
            changed[found.start() + offset : found.start() + offset + 2] = value.to_bytes(2, "little")
    return bytes(changed)


def encrypted(content: bytes) -> bytes:
    return header_field(content, 6, 8, 1)


def oddly_packed(content: bytes) -> bytes:
    return header_field(content, 8, 10, 99)


def all_of(path) -> dict[str, np.ndarray]:
    with dask.config.set(scheduler="sync"):
        return {str(name): array.values for name, array in open_prism(path, allow_missing=True).variables.items()}


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(got[name], values)


# ------------------------------------------------------------------------------------------------------ random damage


def cropped(path: Path) -> bytes:
    """A real zip with all its members, its maps cropped to 40 x 50 cells."""
    small = BytesIO()
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in whole.namelist():
            content = whole.read(name)
            if name.endswith(".bil"):
                columns = re.search(rb"(?m)^NCOLS\s+(\d+)", whole.read(name.replace(".bil", ".hdr")))
                assert columns is not None
                content = np.frombuffer(content, "<f4").reshape(-1, int(columns[1]))[:40, :50].tobytes()
            elif name.endswith(".hdr"):
                for key, value in {b"NROWS": 40, b"NCOLS": 50, b"BANDROWBYTES": 200, b"TOTALROWBYTES": 200}.items():
                    content = re.sub(rb"(?m)^(%b\s+)\S+" % key, rb"\g<1>%d" % value, content)
            elif name.endswith(".tif"):
                with rasterio.MemoryFile(content) as file, file.open() as raster:
                    step, north, west = raster.transform.a, raster.transform.f, raster.transform.c
                    content = tif(
                        raster.read(1, masked=True).filled(np.nan)[:40, :50], raster.tags(), step=step,
                        north=north - step / 2, west=west + step / 2,
                    )  # fmt: skip
            archive.writestr(name, content[:5000] if name.endswith(".csv") else content)
    return small.getvalue()


@pytest.mark.realdata
def test_random_damage_to_the_real_zips(real_data, tmp_path):
    paths = sorted((real_data / "prism").glob("*.zip"))
    assert len(paths) == 7
    for path in paths:
        file, whole = tmp_path / path.name, cropped(path)
        file.write_bytes(whole)
        expected = None if "normal" in path.name else all_of(file)
        good = 0
        for seed in range(40):
            file.write_bytes(damaged(whole, seed))
            try:
                got = all_of(file)
            except ValueError as error:
                assert path.name in str(error), f"seed {seed}: {error}"  # noqa: PT017
            else:
                assert expected is not None, f"seed {seed}: a normal was read"
                assert_same(got, expected)
                good += 1
        assert good < 30


def whole_files() -> dict[str, dict[str, bytes]]:
    """Files in every format, unpacked; the first of each is damaged."""
    rain = map_of(DAY)
    bil = bil_members(old_stem(DAY), rain)
    return {
        "bil": bil,
        "hdr": {name: bil[name] for name in sorted(bil, key=lambda name: not name.endswith(".hdr"))},
        "asc": asc_members(old_stem(DAY, form="asc"), rain),
        "tif": {f"{NEW_NAME}.tif": tif(rain)},
        "nc": {f"{NEW_NAME}.nc": netcdf(rain, "NETCDF3_CLASSIC")},
        "nc4": {f"{NEW_NAME}.nc": netcdf(rain, "NETCDF4")},
    }


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # h5netcdf's, of files it cannot open
@pytest.mark.parametrize("form", whole_files())
def test_random_damage_to_unpacked_files(tmp_path, form):
    """They have no checksum, so values may differ; but the outcome is a Dataset, or an error that names the file."""
    files = whole_files()[form]
    write_files(tmp_path, files)
    for seed in range(40):
        name = next(iter(files))
        (tmp_path / name).write_bytes(damaged(files[name], seed))
        try:
            all_of(tmp_path)
        except ValueError as error:
            assert str(tmp_path) in str(error), f"seed {seed}: {error}"  # noqa: PT017


@pytest.mark.parametrize("form", ["bil", "asc", "tif", "nc", "nc4"])
def test_random_damage_to_zips_of_every_form(tmp_path, form):
    whole = write_zip(tmp_path / "x.zip", whole_files()[form]).read_bytes()
    expected = all_of(tmp_path / "x.zip")
    for seed in range(40):
        (tmp_path / "x.zip").write_bytes(damaged(whole, seed))
        try:
            assert_same(all_of(tmp_path / "x.zip"), expected)
        except ValueError as error:
            assert "x.zip" in str(error), f"seed {seed}: {error}"  # noqa: PT017


def test_each_byte_of_a_map_in_a_zip_counts(tmp_path):
    """GDAL reads a stored map with any byte changed; the checksum of the zip says no."""
    members = bil_members(old_stem(DAY), map_of(DAY))
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    whole = (tmp_path / "x.zip").read_bytes()
    start = whole.index(members[f"{old_stem(DAY)}.bil"])
    for i in random.Random(0).sample(range(4 * SHAPE[0] * SHAPE[1]), 20):
        changed = bytearray(whole)
        changed[start + i] ^= 1
        (tmp_path / "x.zip").write_bytes(changed)
        with pytest.raises(ValueError, match=r"x\.zip is a broken zip \(.*Bad CRC-32"):
            all_of(tmp_path / "x.zip")


# ------------------------------------------------------------------------------------------------------- known damage


@pytest.mark.parametrize(
    ("damage", "text"), [(encrypted, "encrypted"), (oddly_packed, "by a method other than deflate")]
)
def test_zips_that_nobody_can_read(tmp_path, damage, text):
    write_files(tmp_path, bil_members(old_stem(DAY), map_of(DAY)))
    other = day_zip("ppt", DAY, map_of(DAY), 8, region="us")
    (tmp_path / "x.zip").write_bytes(damage(other))
    with pytest.raises(ValueError, match=rf"x\.zip/prism_ppt.* cannot be read .*{text}.*Leave it out of paths"):
        open_prism(tmp_path)


@pytest.mark.parametrize(
    ("header", "text"),
    [
        (b"NCOLS 20\n", "KeyError: 'NROWS'"),
        (b"NROWS twelve\nNCOLS 20\n", "'twelve'"),
        (b"", "KeyError: 'NROWS'"),
        (b"NROWS 13\nNCOLS 20\n", "is truncated: 960 bytes of 1040"),
    ],
)
def test_headers_of_a_bil(tmp_path, header, text):
    stem = old_stem(DAY)
    write_zip(tmp_path / "x.zip", bil_members(stem, map_of(DAY)) | {f"{stem}.hdr": header})
    with pytest.raises(ValueError, match=rf"x\.zip/{stem}\.bil.*{text}"):
        open_prism(tmp_path)


def test_a_header_in_small_letters(tmp_path):
    stem = old_stem(DAY)
    members = bil_members(stem, map_of(DAY))
    members[f"{stem}.hdr"] = members[f"{stem}.hdr"].lower()
    write_zip(tmp_path / "x.zip", members)
    np.testing.assert_array_equal(open_prism(tmp_path)["ppt"][0], map_of(DAY))


@pytest.mark.parametrize("release", ["²", "99999", "-1", "0", "9"])
def test_release_numbers_that_are_none(tmp_path, release):
    info = f"PRISM_DATASET_RELEASE_NUMBER: {release}\n".encode()
    write_zip(tmp_path / "x.zip", {f"{NEW_NAME}.tif": tif(map_of(DAY)), f"{NEW_NAME}.info.txt": info})
    assert open_prism(tmp_path)["ppt_release"].values.tolist() == [0]


def test_a_netcdf_whose_latitudes_are_out_of_order(tmp_path):
    lat = 22 - np.arange(12) / 24
    lat[[4, 5]] = lat[[5, 4]]
    ds = xr.Dataset({"Band1": (("lat", "lon"), map_of(DAY))}, {"lat": lat, "lon": -160 + np.arange(20) / 24})
    ds.to_netcdf(tmp_path / f"{NEW_NAME}.nc")
    with pytest.raises(ValueError, match=r"its lat or lon is 0\.0416667 degrees away from regular steps"):
        open_prism(tmp_path)


def test_a_date_that_no_axis_can_hold(tmp_path):
    (tmp_path / "prism_ppt_us_25m_99990101.tif").write_bytes(tif(map_of(DAY)))
    with pytest.raises(ValueError, match="99990101 is not a date"):
        open_prism(tmp_path)


# -------------------------------------------------------------------------------------------------------------- bombs


def peak(call) -> float:
    """Run ``call``, which may raise, and check the peak memory of Python's allocators."""
    tracemalloc.start()
    try:
        call()
    finally:
        megabytes = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
        assert megabytes < 65


BOMB = bytes(300_000_000)


@pytest.mark.parametrize("name", [f"{old_stem(DAY)}.hdr", f"{old_stem(DAY)}.info.txt"])
def test_a_bomb_beside_a_map(tmp_path, name):
    write_zip(tmp_path / "x.zip", bil_members(old_stem(DAY), map_of(DAY)) | {name: BOMB})
    with pytest.raises(ValueError, match=rf"x\.zip/.*{name} has more than 1048576 bytes"):
        peak(lambda: open_prism(tmp_path))


def test_a_bomb_that_says_that_it_is_small(tmp_path):
    """If the headers declare few bytes, zipfile does not inflate all there are."""
    name = f"{old_stem(DAY)}.info.txt"
    content = write_zip(tmp_path / "x.zip", bil_members(old_stem(DAY), map_of(DAY)) | {name: BOMB}).read_bytes()
    size = len(BOMB).to_bytes(4, "little")
    assert content.count(size) == 2
    (tmp_path / "x.zip").write_bytes(content.replace(size, (100).to_bytes(4, "little")))
    with pytest.raises(ValueError, match=r"x\.zip/.*Bad CRC-32"):
        peak(lambda: open_prism(tmp_path))


def test_a_map_that_is_a_bomb(tmp_path):
    members = bil_members(old_stem(DAY), map_of(DAY))
    members[f"{old_stem(DAY)}.bil"] = BOMB
    write_zip(tmp_path / "x.zip", members)
    with pytest.raises(ValueError, match=r"x\.zip is a broken zip \(it holds 300\d+ bytes; no map .* has more"):
        peak(lambda: open_prism(tmp_path).load())


def test_a_netcdf_that_is_a_bomb(tmp_path):
    write_zip(tmp_path / "x.zip", {f"{NEW_NAME}.nc": BOMB})
    with pytest.raises(ValueError, match=rf"x\.zip/{NEW_NAME}\.nc cannot be read .* has more than {most_bytes('4km')}"):
        peak(lambda: open_prism(tmp_path))


def test_a_grid_that_no_map_has(tmp_path):
    stem = old_stem(DAY)
    members = bil_members(stem, map_of(DAY))
    header = members[f"{stem}.hdr"].replace(b"          12", b"   2000000").replace(b"          20", b"   2000000")
    write_files(tmp_path, members | {f"{stem}.hdr": header.replace(b" 80\n", b" 8000000\n")})
    with pytest.raises(ValueError, match=r"(has 2000000 x 2000000 cells|cannot be read)"):
        peak(lambda: open_prism(tmp_path).load())


def test_bounds_leave_room_for_the_real_files(real_data):
    for path in (real_data / "prism").glob("*.zip"):
        if "20170131" not in path.name:  # three maps
            prism_files.check_zip(path, most_bytes("4km"))
            with zipfile.ZipFile(path) as archive:
                assert sum(member.file_size for member in archive.infolist()) < most_bytes("4km") / 4
