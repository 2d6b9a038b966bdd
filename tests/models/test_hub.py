"""Models at an address: pinned, kept in the cache, and nothing of a failed fetch is ever loaded."""

import hashlib
import shutil

import pooch
import pytest
import requests
from builders import make_coarse, make_stack, make_static
from model_server import Detour, ModelServer, zenodo_record

import xdeepsd


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A server with a model in the folder rain/, the model, the checksum of its description, and an empty cache."""
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    stages = make_stack(1, channels=(4, 3)).stages
    model = xdeepsd.StackedSRCNN(stages, static=make_static(make_coarse(), 2))
    xdeepsd.save_model(model, tmp_path / "www" / "rain")
    server = ModelServer(tmp_path / "www")
    yield server, model, hashlib.sha256((tmp_path / "www/rain/model.json").read_bytes()).hexdigest()
    server.close()


def kept(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file())


def test_it_is_fetched_once_and_then_serves_without_a_connection(published, tmp_path):
    server, model, sha256 = published
    for address in (f"{server.url}/rain", f"{server.url}/rain/"):
        assert xdeepsd.load_model(address, sha256=sha256).fingerprint() == model.fingerprint()
    assert server.asked == ["/rain/model.json", "/rain/model.safetensors"]
    server.close()
    assert xdeepsd.load_model(f"{server.url}/rain", sha256=sha256).fingerprint() == model.fingerprint()
    assert kept(tmp_path) == ["model.json", "model.safetensors"]


@pytest.mark.parametrize("file", ["model.json", "model.safetensors"])
def test_another_file_than_pinned_is_refused_and_not_kept(published, tmp_path, file):
    server, _, sha256 = published
    path = tmp_path / "www/rain" / file
    path.write_bytes(path.read_bytes().replace(b"0", b"1"))
    with pytest.raises(ValueError, match=rf"rain/{file} is another file than expected"):
        xdeepsd.load_model(f"{server.url}/rain", sha256=sha256)
    assert file not in kept(tmp_path)


@pytest.mark.parametrize("cut", [0, 100])
def test_what_breaks_off_is_fetched_again(published, tmp_path, cut):
    server, model, sha256 = published
    server.cut = cut
    with pytest.raises(OSError, match=r"rain/model\.json was not fetched"):
        xdeepsd.load_model(f"{server.url}/rain", sha256=sha256)
    assert kept(tmp_path) == []
    server.cut = None
    assert xdeepsd.load_model(f"{server.url}/rain", sha256=sha256).fingerprint() == model.fingerprint()


def test_a_damaged_cache_is_repaired(published, tmp_path):
    server, model, sha256 = published
    xdeepsd.load_model(f"{server.url}/rain", sha256=sha256)
    for file in (tmp_path / "cache").rglob("model.*"):
        file.write_bytes(file.read_bytes()[:-7])
    assert xdeepsd.load_model(f"{server.url}/rain", sha256=sha256).fingerprint() == model.fingerprint()


def test_without_a_connection_or_a_model_the_error_says_so(published, tmp_path):
    server, _, sha256 = published
    with pytest.raises(OSError, match=r"nothing/model\.json was not fetched: 404"):
        xdeepsd.load_model(f"{server.url}/nothing", sha256=sha256)
    server.close()
    with pytest.raises(OSError, match=r"rain/model\.json was not fetched: .*Needed: a connection"):
        xdeepsd.load_model(f"{server.url}/rain", sha256=sha256)
    assert kept(tmp_path) == []


def test_what_is_no_model_is_named(published, tmp_path):
    server, _, _ = published
    (tmp_path / "www/other").mkdir()
    (tmp_path / "www/other/model.json").write_text("[]")
    with pytest.raises(ValueError, match="does not describe a model of xdeepsd"):
        xdeepsd.load_model(f"{server.url}/other", sha256=hashlib.sha256(b"[]").hexdigest())


@pytest.mark.parametrize("sha256", [None, "", "abc", "g" * 64])
def test_an_address_needs_a_checksum_and_a_folder_none(published, tmp_path, sha256):
    server, _, _ = published
    with pytest.raises(ValueError, match=r"sha256 is .*64 hexadecimal digits"):
        xdeepsd.load_model(f"{server.url}/rain", sha256=sha256)
    assert server.asked == []
    with pytest.raises(ValueError, match="is a folder"):
        xdeepsd.load_model(tmp_path / "www/rain", sha256="0" * 64)


@pytest.mark.parametrize("address", ["hf://rain", "hf://", "hf://owner/"])
def test_a_repository_needs_owner_and_name(address):
    with pytest.raises(ValueError, match="No repository of Hugging Face"):
        xdeepsd.load_model(address, sha256="0" * 64)


@pytest.fixture(params=["hf", "doi"])
def elsewhere(published, tmp_path, monkeypatch, request):
    """The model on Hugging Face or Zenodo, played by the server: the folder there, its address, the model, checksum."""
    server, model, sha256 = published
    www = tmp_path / "www"
    if request.param == "hf":
        folder, address = www / "huggingface.co/owner/rain/resolve/v1/new", "hf://owner/rain@v1/new"
        shutil.copytree(www / "rain", folder)
    else:
        folder, address = zenodo_record(www, 77, www / "rain"), "doi:10.5281/zenodo.77"
    monkeypatch.setattr(requests.Session, "get_adapter", lambda self, url: Detour(server.url))
    return server, folder, address, model, sha256


def test_hugging_face_and_zenodo(elsewhere, tmp_path):
    server, _, address, model, sha256 = elsewhere
    assert xdeepsd.load_model(address, sha256=sha256).fingerprint() == model.fingerprint()
    server.close()
    assert xdeepsd.load_model(address, sha256=sha256).fingerprint() == model.fingerprint()
    assert kept(tmp_path) == ["model.json", "model.safetensors"]


def test_what_goes_wrong_there(elsewhere, tmp_path):
    server, folder, address, model, sha256 = elsewhere
    server.cut = 100
    with pytest.raises((OSError, ValueError), match=r"model\.json was not f(etched|ound)"):
        xdeepsd.load_model(address, sha256=sha256)
    server.cut = None
    tensors = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(tensors[:-1] + b"x")
    with pytest.raises(ValueError, match=r"model\.safetensors is another file than expected"):
        xdeepsd.load_model(address, sha256=sha256)
    (folder / "model.safetensors").write_bytes(tensors)
    assert xdeepsd.load_model(address, sha256=sha256).fingerprint() == model.fingerprint()
    shutil.rmtree(tmp_path / "cache")
    server.close()
    with pytest.raises(OSError, match=r"model\.json was not fetched: .*Needed: a connection"):
        xdeepsd.load_model(address, sha256=sha256)
    assert kept(tmp_path) == []


@pytest.mark.parametrize("address", ["doi:10.5281/zenodo.77", "doi:10.5281/zenodo.404"])
def test_a_record_without_a_model(published, tmp_path, monkeypatch, address):
    server, _, sha256 = published
    (tmp_path / "www/other").mkdir()
    (tmp_path / "www/other/notes.txt").touch()
    zenodo_record(tmp_path / "www", 77, tmp_path / "www/other")
    monkeypatch.setattr(requests.Session, "get_adapter", lambda self, url: Detour(server.url))
    with pytest.raises((OSError, ValueError), match=r"model\.json was not f(etched|ound): "):
        xdeepsd.load_model(address, sha256=sha256)
