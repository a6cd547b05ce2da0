"""A model as the coordinator keeps it, written as numpy keeps arrays."""

import tempfile
from pathlib import Path

from fedfleet_coordinator.cli.errors import BadInput


def write_npz(stream: bytes, output: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return dtype and shape of each array that is now in the file `output`.

    Arrays have the names they have in the app; with several array records the record's name and a dot come first.

    Raises:
        BadInput: the file cannot be written, or the model holds arrays that are not numpy's.
    """
    import numpy as np
    from flwr.app import ArrayRecord

    from fedfleet_flower.contents import read_content
    from fedfleet_protocol.errors import ProtocolError

    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "model"
        source.write_bytes(stream)
        try:
            records = read_content(source).records()
            kept = {name: record for name, record in records.items() if isinstance(record, ArrayRecord)}
            arrays = {
                f"{name}.{key}" if len(kept) > 1 else key: array.numpy()
                for name, record in kept.items()
                for key, array in record.items()
            }
        except (ProtocolError, TypeError, ValueError) as error:
            raise BadInput(f"the run's model cannot be read as numpy arrays: {error}") from error
    if output.suffix != ".npz":
        output = output.with_name(output.name + ".npz") if not output.suffix else output
    written = output.with_name(f".{output.name}.part")
    try:
        with written.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        written.replace(output)
    except OSError as error:
        written.unlink(missing_ok=True)
        raise BadInput(f"{output} cannot be written: {error.strerror}; choose another with -o") from error
    return {key: (str(array.dtype), array.shape) for key, array in arrays.items()}
