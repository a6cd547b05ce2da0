from pathlib import Path

import pytest

from fedfleet_coordinator.cli import context
from fedfleet_coordinator.cli.context import Context
from fedfleet_coordinator.cli.errors import BadInput


def test_what_was_saved_is_loaded_and_only_its_owner_can_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "deep" / "context.toml"
    monkeypatch.setenv(context.VARIABLE, str(file))
    made = Context("https://hub:8443", *(tmp_path / f'na"me\\{n}' for n in range(4)))
    assert context.save(made) == file
    assert context.load() == made
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["context.toml"]


def test_relative_paths_begin_at_the_file(tmp_path: Path) -> None:
    file = tmp_path / "context.toml"
    file.write_text('url = "https://hub:1/"\nca = "ca.pem"\ncert = "c"\nkey = "k"\npublisher_key = "p"\n')
    loaded = context.load(file)
    assert loaded.ca == tmp_path / "ca.pem" and loaded.url == "https://hub:1"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "fedfleet up"),
        ("url = ", "cannot be read"),
        ('url = "https://hub"', "lacks ca, cert, key, publisher_key"),
        ('url = "http://hub"\nca = "a"\ncert = "c"\nkey = "k"\npublisher_key = "p"', "has to begin with https://"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_words(tmp_path: Path, text: str | None, says: str) -> None:
    file = tmp_path / "context.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(BadInput) as refused:
        context.load(file)
    assert says in str(refused.value)


def test_a_publisher_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    made = Context("https://hub", tmp_path, tmp_path, tmp_path, key)
    with pytest.raises(BadInput, match="Ed25519"):
        made.publisher()
    key.write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    with pytest.raises(BadInput, match="Ed25519"):
        made.publisher()


def a_context(folder: Path, port: int) -> Context:
    return Context(f"https://127.0.0.1:{port}", *(folder / name for name in ("ca", "cert", "key", "publisher")))


def test_what_was_there_comes_back_when_a_local_fleet_ends(tmp_path: Path) -> None:
    file, own, said = tmp_path / "context.toml", tmp_path / "own.toml", list[str]()
    file.write_text("the user's")
    with context.borrowed(a_context(tmp_path, 1), own, file=file, answers=lambda _: False, say=said.append) as used:
        assert used == file and context.load(file).url.endswith(":1")
    assert (file.read_text(), said) == ("the user's", [])
    assert [path.name for path in tmp_path.iterdir()] == ["context.toml"]


def test_a_second_local_fleet_leaves_the_context_to_the_first_and_says_how_to_use_its_own(tmp_path: Path) -> None:
    file, own, said = tmp_path / "context.toml", tmp_path / "own.toml", list[str]()
    first, second = a_context(tmp_path, 1), a_context(tmp_path, 11)
    with context.borrowed(first, own, file=file, answers=lambda _: True, say=said.append):
        with context.borrowed(second, own, file=file, answers=lambda _: True, say=said.append) as used:
            assert used == own and context.load(file) == first
        assert context.load(file) == first
    assert not file.exists()
    assert len(said) == 1 and first.url in said[0] and f"FEDFLEET_CONTEXT={own}" in said[0]


def test_a_context_that_a_crashed_fleet_left_is_taken_over_and_the_users_comes_back(tmp_path: Path) -> None:
    file, own, said = tmp_path / "context.toml", tmp_path / "own.toml", list[str]()
    file.write_text("the user's")
    crashed = context.borrowed(a_context(tmp_path, 1), own, file=file, answers=lambda _: False, say=said.append)
    crashed.__enter__()
    with context.borrowed(a_context(tmp_path, 2), own, file=file, answers=lambda _: False, say=said.append):
        assert context.load(file).url.endswith(":2")
    assert file.read_text() == "the user's"
    assert len(said) == 1 and "did not end in order" in said[0]
