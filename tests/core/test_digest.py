import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.core.digest import (
    canonical_json,
    digest_bytes,
    digest_file,
    digest_files,
    digest_json,
)


def test_canonical_json_is_sorted_compact_utf8():
    assert canonical_json({"b": [1, 2.5, None], "a": "é"}) == '{"a":"é","b":[1,2.5,null]}'.encode()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [-float("inf")]])
def test_canonical_json_refuses_what_json_cannot_hold(value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(value)


def test_digest_of_the_empty_object():
    # The SHA-256 of the two bytes {}; also listed among model-signing's test vectors.
    expected = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert digest_json({}) == digest_bytes(b"{}") == expected


def test_manifest_digest_follows_the_model_signing_rule():
    # Golden value produced by model-signing 1.1.1 for these two files.
    digests = [
        ("b", "bfca0697f2d128ef498d093acdb726823cb68eae47042512be1165f744604958"),
        ("a", "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"),
    ]
    expected = "d3696cb1e0913c2f4a263c777f9a11ad17ce211867806a4809de8c12d68c5a18"
    assert digest_files(digests) == digest_files(reversed(digests)) == expected


def test_digest_file_reads_past_one_chunk(tmp_path):
    data = bytes(range(256)) * 6000
    (tmp_path / "big").write_bytes(data)
    assert digest_file(tmp_path / "big") == hashlib.sha256(data).hexdigest()


@given(st.dictionaries(st.text(), st.integers()))
def test_digest_does_not_depend_on_key_order(value):
    assert digest_json(dict(reversed(value.items()))) == digest_json(value)
