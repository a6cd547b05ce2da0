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
