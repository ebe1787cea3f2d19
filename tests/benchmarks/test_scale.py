"""The arithmetic of the tables, on simple numbers."""

import shutil
from pathlib import Path

import pytest

from benchmarks import scale


def test_the_table_multiplies_the_measured_rates():
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in scale.table(scale.Costs(100, {64: 1e9}))}
    got = {name: [cell.strip() for cell in cells] for name, cells in rows.items()}
    assert got["codes, 1.6 an image"] == ["1.6 M", "160 M", "16 G"]
    assert got["features of whole images, if they were kept"] == ["5.12 GB", "512 GB", "51.2 TB"]
    assert got["encoding, one view, 100 a second"] == ["2.78 hours", "11.6 days", "3.17 years"]
    assert got["encoding, six views"] == ["16.7 hours", "69.4 days", "19 years"]
    assert got["64 bits: codes alone"] == ["12.8 MB", "1.28 GB", "128 GB"]
    assert got["64 bits: codes and ids in memory"] == ["25.6 MB", "2.56 GB", "256 GB"]
    assert got["64 bits: a scan by one thread, 1 G codes a second"] == ["1.6 ms", "160 ms", "16 s"]


def test_a_folder_without_rows_names_the_commands_that_write_them(tmp_path):
    with pytest.raises(ValueError, match=r"benchmarks\.encoding"):
        scale.costs(tmp_path)


def test_stored_rows_give_the_stored_tables(tmp_path):
    stored = Path(scale.__file__).parent / "results" / "scale"
    shutil.copytree(stored, tmp_path / "scale")
    scale.main(tmp_path / "scale")
    for name in ("table.md", "engines.md"):
        assert (tmp_path / "scale" / name).read_text() == (stored / name).read_text()
