"""The benchmark and the doctor: figures that agree with each other, whatever the machine."""

import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from statistics import median
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import torch

from headwater.benchmark import bench as bench_module
from headwater.benchmark import layers, measure, training
from headwater.benchmark.bench import BenchOptions, BenchResult, bench
from headwater.benchmark.doctor import _KEEP, DoctorOptions, doctor
from headwater.benchmark.measure import OURS, Machine, race
from headwater.benchmark.roofline import plotted
from headwater.benchmark.shapes import SHAPES, STEP, Shape, step_bytes, step_flops, training_bytes, training_flops
from headwater.cells import cell_class
from headwater.cli import main

TINY = (Shape("S full", 3, 4, 5, 6, ragged=False), Shape("S", 3, 9, 5, 6))
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Everything small, so that only what is measured differs, not how."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench_module, "SHAPES", TINY)
    monkeypatch.setattr(bench_module.products, "__defaults__", (16,))
    monkeypatch.setattr(bench_module.memory, "__defaults__", (64,))
    monkeypatch.setattr(layers, "STEP", replace(STEP, inputs=3, hidden=4))
    monkeypatch.setattr(measure, "_SAMPLE", 0.0)
    monkeypatch.setattr(measure, "_MOST", 3)
    monkeypatch.setattr(training, "_BATCH", 4)
    return tmp_path


@pytest.fixture
def result(tiny, capsys):
    assert main(["bench", "--quiet", "--json", "b.json", "--plot", "b.svg"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "Layers, forward and backward" in said.out
    assert "ONNX Runtime" in said.out
    return BenchResult.model_validate_json((tiny / "b.json").read_text())


# How much work there is


@pytest.mark.parametrize(("cell", "gates"), [("lstm", 4), ("gru", 3), ("rnn", 1)])
def test_the_operations_are_those_counted_by_hand(cell, gates):
    assert cell_class(cell).gates == gates
    full, ragged = TINY
    one = 2 * gates * 6 * 5 + 2 * gates * 6 * 6  # a product with weight_ih, one with weight_hh; 2 for times and plus
    assert step_flops(gates, full) == one
    assert training_flops(gates, full) == 3 * 12 * one
    assert training_flops(gates, ragged) == 3 * int(ragged.lengths().sum()) * one


def test_padding_is_no_work():
    wide = Shape("S", 3, 9, 5, 6)
    assert int(wide.lengths().sum()) < 27
    assert training_flops(4, wide) < training_flops(4, replace(wide, ragged=False))
    assert training_bytes(4, wide) < training_bytes(4, replace(wide, ragged=False))


def test_the_traffic_is_that_counted_by_hand():
    shape = Shape("one", 1, 1, 2, 3, ragged=False)
    weights = 3 * 2 + 3 * 3 + 3 + 3  # of a simple RNN
    assert step_bytes(1, shape) == 4 * (weights + 2 + 3 + 3)
    assert training_bytes(1, shape) == 4 * (3 * weights + 3 * 2 + 3 * 3 + 2 * 3)


def test_ragged_rows_are_half_full_in_the_mean_and_one_is_full():
    for shape in SHAPES:
        lengths_B = shape.lengths()
        assert torch.equal(lengths_B, shape.lengths())
        assert lengths_B.max() == shape.time
        assert lengths_B.min() >= 1
        fill = lengths_B.double().mean() / shape.time
        assert 0.35 < fill < 0.7 if shape.ragged else fill == 1


# All paths compute the same


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("shape", TINY, ids=lambda shape: shape.name)
def test_all_paths_of_a_layer_give_the_same_gradients(cell, shape):
    gradients = {path: run() for path, run in layers.training_paths(cell, shape, ("float32",)).items()}
    assert len(gradients) == 3
    for got in gradients.values():
        for a, b in zip(got, gradients[OURS, "float32"], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_all_paths_of_a_stream_give_the_same_outputs(cell):
    paths = layers.step_paths(cell)
    with torch.inference_mode():
        for _ in range(4):
            outputs = [np.asarray(run()).ravel() for run in paths.values()]
            for output in outputs[1:]:
                np.testing.assert_allclose(output, outputs[0], atol=1e-5)


def test_both_classifiers_have_as_many_parameters():
    counts = [sum(p.numel() for p in model.parameters()) for model in training._models("gru")]
    assert counts[0] == counts[1]


# The figures


def test_paths_take_turns():
    calls = []
    paths = {("a", "float32"): lambda: calls.append("a"), (OURS, "float32"): lambda: calls.append("b")}
    rows = race(paths, budget=0.0, part="fit", case="x")
    assert [len(row.seconds) for row in rows] == [3, 3]
    turns = [who for number, who in enumerate(calls) if number == 0 or calls[number - 1] != who]
    assert turns == ["a", "b"] * 4  # once to warm up


def test_a_ratio_is_the_quotient_of_two_medians_of_one_race(result):
    assert {row.part for row in result.rows} == {"product", "memory", "layer", "step", "fit", "round"}
    races = {}
    for row in result.rows:
        races.setdefault((row.part, row.case, row.cell, row.precision), {})[row.path] = row
    for (part, *_), paths in races.items():
        for row in paths.values():
            assert len(row.seconds) == 3
            assert row.median_seconds == median(row.seconds)
            if row.flops:
                assert row.gflops == pytest.approx(row.flops / row.median_seconds / 1e9)
            if OURS in paths:
                assert row.ratio == pytest.approx(row.median_seconds / paths[OURS].median_seconds)
            else:
                assert part in ("product", "memory")
                assert row.ratio is None


def test_what_is_measured_and_beside_what(result):
    machine = result.machine
    for cell in ("lstm", "gru", "rnn"):
        for shape in TINY:
            paths = {(r.path, r.precision) for r in result.of("layer") if (r.case, r.cell) == (shape.name, cell)}
            both = {(path, p) for path in (OURS, "torch padded") for p in machine.precisions()}
            assert paths == both | {("torch packed", "float32")}
        assert {r.path for r in result.of("step") if r.cell == cell} == {OURS, "torch", "ONNX Runtime"}
        for part in ("fit", "round"):
            assert {r.path for r in result.of(part) if r.cell == cell} == {OURS, "plain loop"}
    assert ("torch.mm", "float32") in {(r.path, r.precision) for r in result.of("product")}


def test_filters_leave_the_rest_out(tiny, capsys):
    result = bench(BenchOptions(only_parts="S,step", cells="gru", quick=True, quiet=True))
    assert {row.part for row in result.rows} == {"product", "memory", "layer", "step"}
    assert {row.cell for row in result.rows} == {"", "gru"}
    assert {row.case for row in result.of("layer")} == {"S full", "S"}
    assert capsys.readouterr().out == ""


def test_a_busy_machine_is_said(tiny, monkeypatch, capsys):
    monkeypatch.setattr(os, "getloadavg", lambda: (99.0, 0.0, 0.0))
    assert main(["bench", "--only", "step", "--cells", "rnn"]) == 0
    said = capsys.readouterr()
    assert "busy" in said.err
    assert "busy" in said.out


def test_the_file_names_no_host(result, tiny):
    content = json.loads((tiny / "b.json").read_text())
    assert content["format"] == "headwater.bench/1"
    assert content.keys() == {"format", "machine", "notes", "rows"}
    assert os.uname().nodename not in (tiny / "b.json").read_text() + (tiny / "b.svg").read_text()


def test_torch_has_its_threads_again_afterwards(tiny):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        bench(BenchOptions(only_parts="step", cells="rnn", quiet=True))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# The plot


def test_the_plot_is_xml_with_a_point_for_each_row_and_labels_apart(result, tiny):
    root = ET.fromstring((tiny / "b.svg").read_text())  # noqa: S314 - our own file
    assert root.tag == f"{SVG}svg"
    tips = [point.find(f"{SVG}title").text for point in root.iter(f"{SVG}circle") if "point" in point.get("class")]
    assert len(tips) == len(plotted(result.rows)) == len(result.of("layer") + result.of("step"))
    for row in plotted(result.rows):
        assert any(tip.startswith(f"{row.cell} {row.case}, {row.path}, {row.precision}: ") for tip in tips)
    assert "http" not in (tiny / "b.svg").read_text().replace("http://www.w3.org/2000/svg", "")
    names = [text for text in root.iter(f"{SVG}text") if text.text in ("S", "S full", "step")]
    by_line = {}
    for name in names:
        by_line.setdefault(name.get("y"), []).append((float(name.get("x")), 7 * len(name.text)))
    assert len(by_line) == 3
    for line in by_line.values():
        line.sort()
        for (x, width), (next_x, next_width) in itertools.pairwise(line):
            assert next_x - x > (width + next_width) / 2


def test_a_plot_without_points_is_still_one(tiny):
    assert main(["bench", "--quiet", "--only", "fit", "--cells", "rnn", "--plot", "b.svg"]) == 0
    ET.fromstring((tiny / "b.svg").read_text())  # noqa: S314 - our own file


# Bad input


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (["--only", "L"], ["'L'", "known: S, M, XS, NWP, step, fit, round"]),
        (["--only", ""], ["''"]),
        (["--cells", "lstm,ltsm"], ["'ltsm'", "did you mean 'lstm'"]),
        (["--cells", "gru_reset_before"], ["known: lstm, gru, rnn"]),
        (["--jsn", "x"], ["did you mean '--json'"]),
        (["--json"], ["expected one argument"]),
        (["--json", "."], ["can't write"]),
        (["--plot", "file/b.svg"], ["can't write"]),
    ],
)
def test_bad_options_are_refused_before_anything_is_measured(given, parts, tiny, capsys, monkeypatch):
    monkeypatch.setattr(bench_module, "_jobs", lambda *_: pytest.fail("measured"))
    (tiny / "file").write_text("x")
    assert main(["bench", *given]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert all(part in said.err for part in parts)


def test_an_interruption_leaves_nothing(tiny, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(bench_module, "streaming", interrupted)
    assert main(["bench", "--quiet", "--json", "b.json", "--plot", "b.svg"]) == 130
    assert capsys.readouterr().err == "headwater: interrupted\n"
    assert list(tiny.iterdir()) == []


# The doctor


def test_the_doctor_says_what_is_there(capsys):
    assert main(["doctor"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    machine = Machine.look()
    for part in ("kernels", machine.kernels_why, "bfloat16", torch.__version__, "tokenizers", "pyarrow", "gpu"):
        assert part in said.out


def test_the_doctor_answers_a_machine_too(capsys):
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == {"machine", "gain", "keeps_memory", "packages", "gpu"}
    assert found["machine"]["kernels"]
    assert found["gain"] is None or found["gain"] > 0


def test_the_doctor_names_what_is_missing(capsys, monkeypatch):
    monkeypatch.setattr("headwater.benchmark.doctor.find_spec", lambda _: None)
    missing = ("tokenizers", "pyarrow", "huggingface_hub", "opencc", "h5py", "zstandard")
    assert doctor(DoctorOptions()).packages == dict.fromkeys(missing, False)
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "pip install headwater[bpe]" in said
    assert "pip install headwater[parquet]" in said


def test_doctor_and_bench_work_with_the_kernels_off(tmp_path):
    environment = os.environ | {"HEADWATER_KERNELS": "off"}

    def run(*arguments):
        command = [sys.executable, "-m", "headwater", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    said = run("doctor", "--json")
    assert (said.returncode, said.stderr) == (0, "")
    assert json.loads(said.stdout)["machine"]["kernels"] == "off"
    said = run("bench", "--quick", "--quiet", "--only", "step", "--cells", "rnn", "--json", "b.json")
    assert (said.returncode, said.stderr) == (0, "")
    rows = json.loads((tmp_path / "b.json").read_text())["rows"]
    assert not [row for row in rows if row["part"] == "product" and row["path"] == OURS]


@pytest.mark.parametrize("keeps", [True, False])
def test_the_doctor_sees_whether_freed_memory_is_kept(keeps):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    if keeps:
        environment |= dict(setting.split("=") for setting in _KEEP.split())
    code = "from headwater.benchmark.doctor import _keeps_memory; print(_keeps_memory())"
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == str(keeps)
