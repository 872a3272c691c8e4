"""What is written comes back bit for bit, is plain safetensors and JSON, and loads for ever."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import xxhash
from support.checkpoints import GOLDEN, assert_same_contents, assert_same_tensors, contents, golden_contents

from multibackend.checkpoint import Contents, read_checkpoint, read_manifest, verify, write_checkpoint
from multibackend.checkpoint.contents import checkpoint_name, parse_name
from multibackend.checkpoint.manifest import MANIFEST
from multibackend.core.json_text import MOST_VALUES
from multibackend.errors import CheckpointError


def test_round_trip(tmp_path: Path) -> None:
    """Groups, names, types, shapes, every bit, the state's numbers, the place and unknown fields."""
    path = write_checkpoint(tmp_path / "here", golden_contents())
    assert path == tmp_path / "here"
    assert_same_contents(read_checkpoint(path), golden_contents())
    assert [entry.name for entry in tmp_path.iterdir()] == ["here"]


def test_golden_checkpoint_loads_for_ever() -> None:
    """The first version's, as it was written once."""
    assert_same_contents(read_checkpoint(GOLDEN), golden_contents())
    assert verify(GOLDEN).version == (1, 0)


def test_unknown_fields_are_kept(tmp_path: Path) -> None:
    """What a later minor version adds survives being read and written by this one."""
    again = write_checkpoint(tmp_path / "again", read_checkpoint(GOLDEN))
    assert read_manifest(again).extra == {"of a later version": {"kept": [1, 2, 3]}}


def test_files_are_plain_safetensors(tmp_path: Path) -> None:
    """The safetensors library reads each group, with the metadata that other readers ask for."""
    path = write_checkpoint(tmp_path / "here", golden_contents())
    for group, arrays in golden_contents().tensors.items():
        found = safetensors.numpy.load_file(path / f"{group}.safetensors")
        assert {name: (a.dtype, a.shape, a.tobytes()) for name, a in found.items()} == {
            name: (a.dtype, a.shape, a.tobytes()) for name, a in arrays.items()
        }
    with safetensors.safe_open(path / "parameters.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_parameters_load_into_a_plain_torch_model(tmp_path: Path) -> None:
    """With `load_file` and `load_state_dict` alone."""
    torch = pytest.importorskip("torch")
    load_file = pytest.importorskip("safetensors.torch").load_file
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    arrays = {name: tensor.detach().numpy().copy() for name, tensor in model.state_dict().items()}
    path = write_checkpoint(tmp_path / "here", Contents({"parameters": arrays}, {}, update=0))
    other = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    other.load_state_dict(load_file(path / "parameters.safetensors"))
    assert {name: tensor.numpy().tobytes() for name, tensor in other.state_dict().items()} == {
        name: array.tobytes() for name, array in arrays.items()
    }


def test_a_reader_of_a_few_lines(tmp_path: Path) -> None:
    """The document's rules suffice: the manifest is JSON that ends in the digest of what is before its last field."""
    path = write_checkpoint(tmp_path / "here", contents(3))
    text = (path / MANIFEST).read_bytes()
    body, _, digest = text.partition(b',\n"digest": "xxh3-128:')
    assert digest == f'{xxhash.xxh3_128_hexdigest(body)}"\n}}\n'.encode()
    manifest = json.loads(text)
    for name, entry in manifest["files"].items():
        data = (path / name).read_bytes()
        assert (len(data), xxhash.xxh3_128_hexdigest(data)) == (entry["bytes"], entry["xxh3_128"])
        length = int.from_bytes(data[:8], "little")
        assert (8 + length) % 64 == 0
        header = json.loads(data[8 : 8 + length])
        assert len(header) == entry["tensors"] + 1


def test_data_are_aligned(tmp_path: Path) -> None:
    """A tensor whose size is a multiple of 64 bytes begins at one, in the file and in memory; all are writable."""
    rng = np.random.default_rng(0)
    arrays = {f"t{n}": rng.normal(size=n).astype(dtype) for n in range(40) for dtype in ("f4",)}
    path = write_checkpoint(tmp_path / "here", Contents({"parameters": arrays}, {}, update=0))
    for array in read_checkpoint(path).tensors["parameters"].values():
        assert array.flags.aligned
        assert array.flags.writeable
        if array.nbytes and array.nbytes % 64 == 0:
            assert array.ctypes.data % 64 == 0


def test_any_layout_of_an_array(tmp_path: Path) -> None:
    """Transposed, strided, big-endian and read-only arrays are stored by value."""
    base = np.arange(24, dtype="f8").reshape(4, 6)
    frozen = base.copy()
    frozen.flags.writeable = False
    arrays = {"t": base.T, "s": base[::2, ::-1], "big": base.astype(">f8"), "frozen": frozen}
    path = write_checkpoint(tmp_path / "here", Contents({"parameters": arrays}, {}, update=0))
    found = read_checkpoint(path).tensors["parameters"]
    assert all(np.array_equal(found[name], array) for name, array in arrays.items())


def test_bfloat16_is_kept_and_comes_back_as_float32(tmp_path: Path) -> None:
    """numpy has no such type: written as BF16 bit for bit, read as the same numbers."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    pytest.importorskip("torch")
    numbers = np.array([1.0, -2.5, 1e-40, np.inf, 3.3895314e38], "f4").astype(ml_dtypes.bfloat16)
    arrays = {"half": numbers, "odd": np.ones(3, "i1")}
    path = write_checkpoint(tmp_path / "here", Contents({"parameters": arrays}, {}, update=0))
    with safetensors.safe_open(path / "parameters.safetensors", framework="torch") as file:
        assert str(file.get_tensor("half").dtype) == "torch.bfloat16"
        assert file.get_tensor("half").float().tolist() == numbers.astype("f4").tolist()
    found = read_checkpoint(path).tensors["parameters"]["half"]
    assert found.dtype == np.float32
    assert found.tolist() == numbers.astype("f4").tolist()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tensors": {"Parameters": {}}}, "no name for a group"),
        ({"tensors": {"../up": {}}}, "no name for a group"),
        ({"tensors": {"parameters": {"../../etc/x": np.ones(1)}}}, "reads as a path"),
        ({"tensors": {"parameters": {"/etc/x": np.ones(1)}}}, "reads as a path"),
        ({"tensors": {"parameters": {"a\\b": np.ones(1)}}}, "backslashes"),
        ({"tensors": {"parameters": {"a\x00b": np.ones(1)}}}, "unprintable"),
        ({"tensors": {"parameters": {"": np.ones(1)}}}, "text of 1 to"),
        ({"tensors": {"parameters": {"__metadata__": np.ones(1)}}}, "own field"),
        ({"tensors": {"parameters": {"w": np.ones(1, complex)}}}, "complex128"),
        ({"tensors": {"parameters": {"w": np.array([object()])}}}, "object"),
        ({"state": {"loss": float("nan")}}, r"state.loss is nan"),
        ({"state": {"a": [{"b": np.ones(2)}]}}, r"state.a\[0\].b is a ndarray"),
        ({"state": {"a": {1: 2}}}, "keys must be strings"),
        ({"state": {"a": 2**128}}, "129 bits"),
        ({"state": {"a": [0] * (MOST_VALUES + 1)}}, "belong in tensors"),
        ({"extra": {"state": {}}}, "fields of the format"),
        ({"update": -1}, "update is -1"),
        ({"micro_batches": 10**9}, "micro_batches is"),
    ],
)
def test_what_cannot_be_kept_is_refused(tmp_path: Path, change: dict, words: str) -> None:
    """Before anything is left on the disk, in words that name it."""
    with pytest.raises(CheckpointError, match=words):
        write_checkpoint(tmp_path / "here", replace(contents(), **change))
    assert list(tmp_path.iterdir()) == []


def test_deep_state_is_refused(tmp_path: Path) -> None:
    """A list in itself ends in a typed error as well."""
    state: list = []
    state.append(state)
    with pytest.raises(CheckpointError, match="nested"):
        write_checkpoint(tmp_path / "here", replace(contents(), state={"a": state}))


def test_numpy_scalars_become_numbers(tmp_path: Path) -> None:
    """A float32 comes back as the float64 that equals it."""
    state = {"a": np.float32(0.1), "b": np.int64(3), "c": np.bool_(True), "d": (1, 2)}
    path = write_checkpoint(tmp_path / "here", replace(contents(), state=state))
    assert read_checkpoint(path).state == {"a": float(np.float32(0.1)), "b": 3, "c": True, "d": [1, 2]}


def test_an_existing_path_is_never_written_over(tmp_path: Path) -> None:
    """A checkpoint, a file, an empty directory, a dangling link."""
    write_checkpoint(tmp_path / "here", contents(1))
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("here", "file", "empty", "link"):
        with pytest.raises(CheckpointError, match="exists already"):
            write_checkpoint(tmp_path / name, contents(2))
    assert_same_contents(read_checkpoint(tmp_path / "here"), contents(1))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["empty", "file", "here", "link"]


def test_names_of_directories() -> None:
    """They read back, order by generation, update and micro-batch, and nothing else is taken for one."""
    places = [(0, 0, 0), (0, 5, 0), (0, 5, 3), (0, 6, 0), (0, 10**9, 0), (1, 4, 0), (1, 4, 2), (2, 0, 1)]
    names = [checkpoint_name(update, micro, generation) for generation, update, micro in places]
    assert [parse_name(name) for name in names] == places == sorted(places)
    for other in ("update-5", "update-000000005", "update-00000005.0", "update-00000005-micro-0", "update-00000005x"):
        assert parse_name(other) is None
    with pytest.raises(CheckpointError, match="is no name for update 7"):
        write_checkpoint(Path("/nowhere/update-00000008"), contents(7))


def test_the_documents_reader_reads() -> None:
    """The program in `docs/checkpoint_format.md`, as it is printed there, on the golden checkpoint."""
    text = (Path(__file__).parents[2] / "docs" / "checkpoint_format.md").read_text(encoding="utf-8")
    (program,) = [code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "def read(" in code]
    names: dict[str, Any] = {}
    exec(program, names)
    manifest, groups = names["read"](GOLDEN)
    assert manifest["state"] == golden_contents().state
    for group, arrays in golden_contents().tensors.items():
        assert_same_tensors(groups[group], arrays)
