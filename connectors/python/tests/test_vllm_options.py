"""What `kv_connector_extra_config` may hold, and what is said of the rest."""

from __future__ import annotations

import pytest

from cairn_kv.vllm.options import Options


def test_nothing_given_is_the_defaults_and_no_warning() -> None:
    assert Options.read({}) == Options()
    assert Options().warnings() == []


def test_known_names_are_taken_and_told_of_no_more() -> None:
    options = Options.read({"socket": "/run/x.sock", "windowBytes": 1 << 20, "loadBlocksMin": 4})
    assert (options.socket, options.window_bytes, options.load_blocks_min) == ("/run/x.sock", 1 << 20, 4)
    assert options.warnings() == []


def test_an_unknown_name_has_a_line_of_its_own() -> None:
    options = Options.read({"colour": "blue", "Socket": "x"})
    assert options.warnings() == [
        "unknown option Socket in kv_connector_extra_config",
        "unknown option colour in kv_connector_extra_config",
    ]


def test_options_of_lmcache_are_told_of_in_one_line_without_their_values_and_change_nothing() -> None:
    given = {"lmcache.mp.port": 5555, "lmcache.mp.host": "tcp://user:secret@host", "lmcache.local_cpu": True}
    options = Options.read({**given, "windowBytes": 1 << 20})
    (line,) = options.warnings()
    for name in given:
        assert name in line
    assert "secret" not in line
    assert options.unknown == ()
    assert Options.read({"windowBytes": 1 << 20}).window_bytes == options.window_bytes


@pytest.mark.parametrize("given", [{"windowBytes": 1}, {"lookupTimeoutMs": 0}, {"loadBlocksMin": 0}])
def test_a_value_out_of_range_is_an_error(given: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(given))):
        Options.read(given)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("loadBlocksMin", "2"),
        ("loadBlocksMin", True),
        ("loadBlocksMin", None),
        ("loadBlocksMin", 0),
        ("lookupTimeoutMs", "50"),
        ("lookupTimeoutMs", float("inf")),
        ("lookupTimeoutMs", float("nan")),
        ("windowBytes", 1e9),
        ("windowBytes", [1 << 20]),
        ("keepFailurePolicy", "false"),
        ("socket", 5),
    ],
)
def test_a_value_of_another_type_or_out_of_range_is_refused_by_the_name_of_its_option(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        Options.read({name: value})
