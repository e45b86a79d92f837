import json
import platform

import numpy
import pytest

from expunge.core.errors import IntegrityError
from expunge.core.manifest import Manifest, environment


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "sub" / "b.txt").write_text("text")
    return tmp_path


def test_lists_files_by_relative_path(folder):
    manifest = Manifest.of(folder, base="abc")
    assert list(manifest.files) == ["a.json", "sub/b.txt"]
    # The SHA-256 of the two bytes {}.
    assert manifest.files["a.json"] == (
        "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    )
    assert manifest.to_json() == {
        "files": dict(manifest.files),
        "digest": manifest.digest(),
        "lineage": {"base": "abc"},
    }


def test_digest_follows_the_model_signing_rule():
    # Golden value produced by model-signing 1.1.1.
    files = {
        "b": "bfca0697f2d128ef498d093acdb726823cb68eae47042512be1165f744604958",
        "a": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
    }
    assert Manifest(files).digest() == (
        "d3696cb1e0913c2f4a263c777f9a11ad17ce211867806a4809de8c12d68c5a18"
    )


def test_verify_accepts_the_same_bytes(folder):
    manifest = Manifest.of(folder)
    (folder / "a.json").write_text("{}")
    manifest.verify(folder)


def test_verify_names_every_difference(folder):
    manifest = Manifest.of(folder)
    (folder / "a.json").write_text("{ }")
    (folder / "sub" / "b.txt").rename(folder / "sub" / "c.txt")
    with pytest.raises(IntegrityError) as caught:
        manifest.verify(folder)
    assert str(caught.value).endswith(
        "a.json was changed; sub/b.txt is missing; sub/c.txt was added"
    )


def test_environment_names_versions_and_is_json():
    found = environment()
    assert found["libraries"]["numpy"] == numpy.__version__
    assert found["python"] == platform.python_version()
    assert json.loads(json.dumps(found)) == found
