"""Values of settings: sizes as text, `~` and variables in paths, names that are nearly right."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from flowgentic_actors import MemoryCluster, MemoryConfig
from flowgentic_actors.cluster.shard_limits import transfer_rate
from flowgentic_actors.errors import InvalidRequestError
from flowgentic_actors.langGraph import memory as flowgentic


def made(settings: dict[str, Any]) -> MemoryConfig:
    return MemoryConfig(**settings)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1GB", 10**9),
        ("512 MiB", 512 * 2**20),
        ("1.5 GiB", 3 * 2**29),
        ("0.1 GB", 10**8),
        (" 2 tb ", 2 * 10**12),
        ("3000000 B", 3_000_000),
        ("3000000", 3_000_000),
        (3_000_000, 3_000_000),
    ],
)
def test_a_size_is_a_number_of_bytes_or_text(text: Any, expected: int) -> None:
    assert MemoryConfig(store_total_mem=text).store_total_mem == expected


@pytest.mark.parametrize("text", ["much", "4G", "1 GB 5 MB", "GB", "1,5 GB", ""])
def test_text_that_is_no_size_is_refused_with_what_would_be(text: str) -> None:
    with pytest.raises(ValidationError, match=r"cache_total_mem[\s\S]*512 MiB"):
        MemoryConfig(cache_total_mem=text)  # type: ignore[arg-type]


def test_a_size_as_text_has_the_same_limits() -> None:
    with pytest.raises(ValidationError, match=r"cache_total_mem[\s\S]*greater than"):
        MemoryConfig(cache_total_mem="1 KiB")  # type: ignore[arg-type]


def test_a_rate_is_a_number_or_text() -> None:
    assert transfer_rate("64 MiB") == 64 * 2**20
    assert transfer_rate(5.5) == 5
    assert transfer_rate(math.inf) > 10**12
    for given in ("fast", 0, "0 MB"):
        with pytest.raises(InvalidRequestError, match="max_bytes_per_second"):
            transfer_rate(given)


PATHS = ["persist_path", "scratch", "rendezvous", "stop_file"]


@pytest.mark.parametrize("field", PATHS)
def test_a_tilde_is_the_home_directory(
    field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in ("~/x", Path("~/x")):
        assert getattr(made({field: given}), field) == tmp_path / "x"
    with pytest.raises(ValidationError, match=rf"{field}[\s\S]*no-such-user"):
        made({field: "~no-such-user/x"})
    with pytest.raises(ValidationError, match=rf"{field}[\s\S]*empty"):
        made({field: ""})


@pytest.mark.parametrize("field", PATHS)
def test_a_variable_in_a_path_is_that_of_the_environment(
    field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    monkeypatch.delenv("NO_SUCH", raising=False)
    for given in ("$SCRATCH/x", "${SCRATCH}/x", Path("$SCRATCH/x")):
        assert getattr(made({field: given}), field) == tmp_path / "x"
    for unset in ("$NO_SUCH", "${NO_SUCH}"):
        with pytest.raises(ValidationError, match=rf"{field}[\s\S]*{re.escape(unset)}.*not set"):
            made({field: f"/somewhere/{unset}/x"})


@pytest.mark.parametrize("given", ["s3://bucket/x", "file:///x", Path("s3://bucket/x")])
def test_a_url_is_no_path(given: Any) -> None:
    with pytest.raises(ValidationError, match="no path of a file system"):
        MemoryConfig(persist_path=given)


def test_a_path_with_a_null_character_is_refused() -> None:
    with pytest.raises(ValidationError, match="null character"):
        MemoryConfig(persist_path="/home/a\0b")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"replica": 2}, "replicas"),
        ({"persistpath": "/x"}, "persist_path"),
        ({"ttl": {"default_tll": 5}}, "default_ttl"),
        ({"index": {"dim": 5, "embed": len}}, "dims"),
    ],
)
def test_an_unknown_name_is_told_with_the_one_that_may_be_meant(
    given: dict[str, Any], meant: str
) -> None:
    with pytest.raises(ValidationError, match=f"did you mean '{meant}'"):
        MemoryCluster(**given)


def test_an_unknown_name_that_resembles_none_is_told_alone() -> None:
    with pytest.raises(ValidationError, match="unknown setting 'xyz'") as refusal:
        MemoryCluster(xyz=1)
    assert "did you mean" not in str(refusal.value)


def test_the_configuration_of_conversations_suggests_names_too() -> None:
    with pytest.raises(ValidationError, match="did you mean 'max_tokens'"):
        flowgentic.MemoryConfig(max_token=5)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("some/path", r"persist_path='some/path'"),
        (Path("some/path"), r"persist_path='some/path'"),
        ({"mode": "local"}, r"MemoryCluster\(\*\*settings\)"),
        (7, "by name"),
    ],
)
def test_a_cluster_says_how_it_is_configured(given: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        MemoryCluster(given)
