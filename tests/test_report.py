"""The report: one safe, self-contained file that says what the records say, and nothing else."""

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest
import report_fixtures as made

from headwater.errors import CheckpointError, DataError, OutputError
from headwater.records import ClientRow, Confusion, Curve, Example, Gain, Parent, RoundRow
from headwater.report import formatting as fmt
from headwater.report import write_report
from headwater.report.collect import ancestors
from headwater.report.device import size_facts
from headwater.report.lineage import build_nodes
from headwater.report.svg import LogScale, fit_ticks, tag
from headwater.report.transfer import transfer_facts
from headwater.statistics import Interval

EVERY_SECTION = [
    "lineage", "notes", "data", "training", "transfer", "few_shot", "language", "coverage", "federated", "privacy",
    "personal", "confusion", "scores", "device", "examples", "appendix",
]  # fmt: skip
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Collects what a browser would see, and complains where tags don't match."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.tags, self.ids, self.words, self.open, self.attributes = [], [], [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, name, attributes):
        self.tags.append(name)
        self.attributes += [(name, key, value) for key, value in attributes]
        self.ids += [value for key, value in attributes if key == "id"]
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def page_of(records, folder):
    return Page(write_report(made.save(records, folder)).read_text("utf-8"))


def section(html, key):
    return html.split(f'<section id="{key}"')[1].split("</section>")[0]


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    return write_report(made.save(made.journey(), tmp_path_factory.mktemp("journey"))).read_text("utf-8")


def test_a_whole_journey_has_every_section_in_order(html):
    page = Page(html)
    assert [one for one in page.ids if one in EVERY_SECTION] == EVERY_SECTION
    assert len(page.ids) == len(set(page.ids))


def test_headline_stands_beside_the_trivial_baselines(html):
    hero = Page(html.split("<main")[1].split("<section")[0].split(">", 1)[1]).text
    assert "synthetic-films → synthetic-shop → 40 clients" in hero
    assert "TF-IDF + logistic regression 82.8" in hero
    assert "Majority class 52.0" in hero
    assert "1.59 MiB" in hero
    assert "ε 5.2" in hero


def test_a_language_models_right_tokens_are_not_taken_for_right_rows(html, tmp_path):
    table = Page("<p" + section(html, "language") + "</p>").text
    for expected in ("transfer-language finetune", "88.2", "214", "601", "99.0"):
        assert expected in table
    assert "99.0" not in html.split("<section")[0] + section(html, "transfer")
    assert "held-out" not in table
    held_out = made.language_model()
    held_out.metrics = {"valid": held_out.metrics["test"]}
    page = page_of([held_out], tmp_path)
    assert "held-out" in page.text
    assert "transfer" not in page.ids


def test_epsilon_is_not_claimed_for_an_artifact_that_was_not_private(tmp_path):
    private = made.federate("federate-private", "fedavg", 0.77, minute=33, private=True)
    public = made.federate("federate-fedavg", "fedavg", 0.83, minute=30)
    outside = "does not come from this federation"
    beside = page_of([public, private, made.compress("federate-fedavg")], tmp_path / "beside").text
    inside = page_of([public, private, made.compress("federate-private")], tmp_path / "inside").text
    assert outside in beside
    assert outside not in inside


def test_a_model_below_the_baseline_is_called_that(tmp_path):
    weak = made.transfer("scratch", 50, 0)
    assert "No model here beats" in page_of([weak], tmp_path / "weak").text
    weak.baselines = {"majority": made.figures(0.1)}
    assert "No model here beats" not in page_of([weak], tmp_path / "strong").text


@pytest.mark.parametrize("lacking", EVERY_SECTION[:-1])
def test_a_section_without_facts_is_left_out(tmp_path, lacking):
    empty = {
        "lineage": {"parents": []}, "notes": {"notes": []}, "data": {"data": []}, "training": {"curves": []},
        "coverage": {"coverage": None}, "federated": {"rounds": []}, "privacy": {"privacy": None},
        "personal": {"clients": []}, "confusion": {"confusion": None}, "scores": {"scores": None},
        "examples": {"examples": []},
        "device": {"sizes": {}, "latency": [], "verification": None}, "transfer": {"metrics": {}},
        "language": {"metrics": {}},
        "few_shot": {"episodes": []},
    }[lacking]  # fmt: skip
    records = [one.model_copy(update=empty) for one in made.journey()]
    if lacking == "lineage":
        records = records[:1]
    ids = page_of(records, tmp_path).ids
    assert lacking not in ids
    assert "appendix" in ids


@pytest.mark.parametrize("index", [0, 1, 20, -7, -4, -3, -2, -1])
def test_a_single_stage_is_enough(tmp_path, index):
    one = made.journey()[index]
    page = page_of([one], tmp_path)
    assert one.name in page.text
    own = write_report(tmp_path / one.name)
    assert own == tmp_path / one.name / "report.html"
    assert own.read_bytes() == (tmp_path / "report.html").read_bytes()


def test_stages_stand_in_the_order_in_which_they_started(tmp_path):
    minutes = {"c": 3, "a": 9, "b": 5}
    records = [made.record(name, "x", minute=at, wall_seconds=1.0) for name, at in minutes.items()]
    html = write_report(made.save(records, tmp_path)).read_text("utf-8")
    assert re.findall(r'class="stage-name"><bdi>(\w)<', html) == ["c", "b", "a"]


def test_bare_record(tmp_path):
    page = page_of([made.record("odd", "wander", minute=1)], tmp_path)
    assert [one for one in page.ids if one in EVERY_SECTION] == ["appendix"]


def test_nothing_is_fetched_from_anywhere(html):
    assert not re.search(r"https?:|//[a-z]|url\(|@import|@font-face", html)
    page = Page(html)
    assert not {"img", "link", "iframe", "object", "embed", "base", "form"}.intersection(page.tags)
    reaching = [(tag, key) for tag, key, _ in page.attributes if key in ("src", "srcset", "action", "xlink:href")]
    assert reaching == []
    assert all(value.startswith("#") for _, key, value in page.attributes if key == "href")
    policy = next(value for _, key, value in page.attributes if key == "content" and "default-src" in value)
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'")


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&{{ 7*7 }}"


def hostile_records():
    """Every string of every record replaced, where the schema allows it."""
    spoiled = {"seen": 0}

    def spoil(value, key=""):
        if isinstance(value, dict):
            renamed = key in ("config", "model", "versions", "baselines", "controls", "sizes")
            return {(name + HOSTILE if renamed else name): spoil(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [spoil(item, key) for item in value]
        if isinstance(value, str) and key not in ("role", "correct", "verb", "started"):
            spoiled["seen"] += 1
            return value + HOSTILE
        return value

    records = [type(one).model_validate(spoil(one.model_dump())) for one in made.journey()]
    assert spoiled["seen"] > 1000
    return records


def test_records_are_untrusted(tmp_path, html):
    folder = tmp_path / "hostile"
    for index, one in enumerate(hostile_records()):
        one.save(folder / str(index))
    spoiled = write_report(folder).read_text("utf-8")
    page = Page(spoiled)
    assert "&lt;script&gt;alert(1)" in spoiled
    assert page.tags.count("script") == 1
    assert "img" not in page.tags
    assert not [key for _, key, _ in page.attributes if key.startswith("on")]
    assert [one for one in page.ids if one in EVERY_SECTION] == EVERY_SECTION
    assert set(page.tags) == set(Page(html).tags)
    assert "{{ 7*7 }}" in page.text


def test_drawings_escape_text_and_attributes():
    drawn = tag("text", "<b>", tag("title", 'a"&'), aria_label='x" onload="y')
    assert str(drawn) == '<text aria-label="x&#34; onload=&#34;y">&lt;b&gt;<title>a&#34;&amp;</title></text>'


def test_every_drawing_can_be_read_aloud(html):
    drawings = re.findall(r"<svg [^>]*>", html)
    assert len(drawings) > 10
    for drawing in drawings:
        assert 'aria-hidden="true"' in drawing or ('role="img"' in drawing and 'aria-label="' in drawing)


def test_equal_records_give_equal_bytes(tmp_path, html):
    folder = made.save(list(reversed(made.journey())), tmp_path / "elsewhere")
    assert write_report(folder).read_text("utf-8") == html
    assert write_report(folder).read_text("utf-8") == html


def test_torch_is_not_imported(tmp_path):
    made.save(made.journey(), tmp_path)
    code = (
        "import sys; from pathlib import Path; from headwater.report import write_report;"
        f"write_report(Path({str(tmp_path)!r}));"
        "print([name for name in ('torch', 'sklearn', 'onnx') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_transfer_verdicts(html):
    facts = transfer_facts(made.journey())
    found = {(line.group.rows, line.group.method): line.verdict for block in facts["blocks"] for line in block["lines"]}
    assert found[50, "finetune"] == "gain"
    assert found[50, "multitask"] == "no gain shown"
    assert found[0, "features"] == "loss"
    assert found[50, "scratch"] == ""
    assert [block["rows"] for block in facts["blocks"]] == [50, 200, 0]
    assert "no gain shown" in section(html, "transfer")


def test_transfer_pairs_only_the_same_seed_and_the_same_test_rows():
    scratch, init = made.transfer("scratch", 50, 0), made.transfer("init", 50, 0)
    other_seed = init.model_copy(update={"seed": 5})
    other_rows = init.model_copy(update={"test_fingerprint": made.sha("other")})
    nameless = [one.model_copy(update={"test_fingerprint": ""}) for one in (scratch, init)]
    assert last_line([scratch, init]).interval is not None
    for records in ([scratch, other_seed], [scratch, other_rows], nameless, [init]):
        line = last_line(records)
        assert line.interval is None
        assert line.verdict == ""
        assert "no scratch run" in line.reason


def test_a_transfer_without_a_scratch_run_has_the_interval_over_its_own_twin(tmp_path):
    gain = Gain(mean=0.08, low=0.05, high=0.11, seeds=3, verdict="gain")
    beside = made.transfer("init", 50, 0).model_copy(update={"gain": gain})
    line = last_line([beside])
    assert (line.interval, line.verdict) == (Interval(0.08, 0.05, 0.11), "gain")
    assert line.reason == "over its own twin, 3 seeds"
    assert "init +8.0" in page_of([beside], tmp_path).text
    other = beside.model_copy(update={"seed": 1, "name": "other"})
    assert last_line([beside, other]).interval is None
    assert "among the notes" in last_line([beside, other]).reason
    assert last_line([made.transfer("scratch", 50, 0), beside]).reason == ""  # the run beside it goes before


def last_line(records):
    lines = [line for block in transfer_facts(records)["blocks"] for line in block["lines"]]
    return next(line for line in lines if line.group.method == "init")


def test_transfer_runs_of_other_options_are_not_seeds():
    runs = [made.transfer("init", 50, 0) for _ in range(2)]
    runs[1] = runs[1].model_copy(update={"name": "b", "config": {**runs[1].config, "cell": "gru"}})
    lines = transfer_facts(runs)["blocks"][0]["lines"]
    assert sorted(line.group.label for line in lines) == ["init (cell = gru)", "init (cell = null)"]


def test_personalization_counts_who_gains_and_who_loses(tmp_path):
    one = made.personalize()
    pairs = [(0.5, 0.7), (0.5, 0.4), (0.5, 0.5), (0.6, 0.9)]
    one.clients = [
        ClientRow(client=f"c{i}", train_rows=9, test_rows=9, metrics={"accuracy_before": a, "accuracy_after": b})
        for i, (a, b) in enumerate(pairs)
    ]
    assert "2 gained, 1 lost, 1 stayed" in page_of([one], tmp_path).text.replace(" ,", ",")


def test_meta_learning_stands_beside_the_plain_start(html):
    text = Page(section(html, "few_shot").split(">", 1)[1]).text
    found = re.search(r"Meta-learned (\S+) % \[.*?\] \+(\S+) \[.*?\] gain .* Plain start (\S+) % ", text)
    learned, over, plain = map(float, found.groups())
    assert learned - plain == pytest.approx(over, abs=0.11)
    assert "Majority class" in text
    assert "100 episodes" in text


def test_federations_state_rounds_bytes_and_why_they_ended(html):
    words = Page("<p" + section(html, "federated") + "</p>").text
    for expected in (
        "all 30 rounds done",
        "661 MiB",
        "669 MiB",
        "Each client alone",
        "85.2 %",
        "10⁻⁵",
    ):
        assert expected in words


def test_federations_show_how_clients_are_spread_what_was_sent_and_who_failed(html):
    words = Page("<p" + section(html, "federated") + "</p>").text
    for title in ("Clients' training losses", "Accuracy by what was sent", "Updates that were not taken in"):
        assert title in words
    assert re.search(r"too slow 6 ann \(6\)", words)


def test_a_federation_that_is_measured_now_and_then_is_drawn(tmp_path):
    record = made.federate("now_and_then", "weighted", 0.8, minute=3)
    rounds = [
        row if row.round % 10 == 0 else row.model_copy(update={"metrics": {}, "losses": []}) for row in record.rounds
    ]
    page = page_of([record.model_copy(update={"rounds": rounds})], tmp_path)
    assert "federated" in page.ids
    assert "nan" not in page.text.lower().split()


def test_a_buffered_federation_shows_its_time_and_staleness(tmp_path):
    record = made.federate("buffered", "mean", 0.8, minute=3)
    rounds = [row.model_copy(update={"time": row.round * 0.75, "staleness": 1.25}) for row in record.rounds]
    html = page_of([record.model_copy(update={"rounds": rounds})], tmp_path / "timed").text
    assert "Accuracy by simulated time" in html
    assert re.search(r"MiB \S+ MiB 22\.5 1\.25 ", html)
    assert "simulated time" not in page_of([record], tmp_path / "without").text


def test_size_ratio_is_that_to_the_float32_checkpoint(html):
    assert f"{(5_649_544 + 208_100) / (1_462_300 + 208_100):.2f}{fmt.TIMES}" in section(html, "device")


def test_lineage_collapses_a_matrix_and_shows_missing_parents():
    nodes = build_nodes(made.journey())
    assert [node.title for node in nodes if node.title.startswith("Transfer")] == [
        f"Transfer {fmt.TIMES} 45",
        "Transfer",
    ]
    depth = {node.title.split(f" {fmt.TIMES}")[0]: node.depth for node in nodes}
    assert depth["Pre-training"] < depth["Transfer"] < depth["Federation"] < depth["Compression"] < depth["Export"]
    alone = build_nodes([made.export()])
    assert [(node.outside, node.depth) for node in alone] == [(True, 0), (False, 1)]


def test_two_journeys_with_the_same_names_are_told_apart():
    first, second = (
        [
            made.record("movies", "pretrain", minute=minute, identity=made.sha(f"movies {minute}"), sizes={"m": size}),
            made.record("small", "compress", minute=minute + 1, identity=made.sha(f"small {minute}"), sizes={"m": 10},
                        parents=[Parent(name="movies", verb="pretrain", identity=made.sha(f"movies {minute}"))]),
        ]
        for minute, size in ((1, 40), (3, 20))
    )  # fmt: skip
    records = [*first, *second]
    assert [ancestors(journey[1], records) for journey in (first, second)] == [[first[0]], [second[0]]]
    assert [line["ratio"] for line in size_facts(records)["lines"]] == [None, 4.0, None, 2.0]
    nodes = build_nodes([*first, second[1]])
    assert [(node.outside, node.depth) for node in nodes] == [(True, 0), (False, 0), (False, 1), (False, 1)]


def test_lineage_survives_a_ring(tmp_path):
    a = made.record("a", "pretrain", minute=1, parents=[made.parent("b", "x")])
    b = made.record("b", "pretrain", minute=2, parents=[made.parent("a", "x")])
    assert "lineage" in page_of([a, b], tmp_path).ids


def test_figures_that_are_not_numbers_are_not_drawn(tmp_path):
    bad = [float("nan"), float("inf"), 0.5]
    one = made.record("odd", "pretrain", minute=1, curves=[Curve(name="loss", x_label="step", x=[1, 2, 3], y=bad)])
    (tmp_path / "odd").mkdir()
    text = one.model_dump_json().replace('"y":[null,null,0.5]', '"y":[NaN,Infinity,0.5]')
    assert "NaN" in text
    (tmp_path / "odd" / "stage.json").write_text(text)
    drawn = section(write_report(tmp_path).read_text("utf-8"), "training")
    assert not re.search(r"\b(nan|inf)\b", drawn)
    assert drawn.count("<circle") == 1


def test_odd_shapes_are_drawn_or_left_out(tmp_path):
    wide = [f"label {index} with a very long name 很长的名字" for index in range(25)]
    one = made.record(
        "odd", "federate", minute=1,
        curves=[Curve(name="", x_label="", x=[], y=[]), Curve(name="a b", x_label="step", x=[3], y=[1])],
        confusion=Confusion(labels=wide, counts=[[0] * 25 for _ in range(25)]),
        rounds=[RoundRow(round=1, clients=0, bytes_down=0, bytes_up=0, metrics={})],
        examples=[Example(tokens=[], weights=[], label="", predicted="", probability=0.0)],
        clients=[ClientRow(client="", train_rows=0, test_rows=0, metrics={})],
    )  # fmt: skip
    page = page_of([one], tmp_path)
    assert {"training", "confusion", "federated", "examples"} <= set(page.ids)


def test_long_curves_keep_their_extremes(tmp_path):
    y = [1.0] * 20_000
    y[7_777] = 9.0
    one = made.record("long", "pretrain", minute=1, curves=[Curve(name="loss", x_label="step", x=range(20_000), y=y)])
    drawn = section(write_report(made.save([one], tmp_path)).read_text("utf-8"), "training")
    assert len(drawn) < 20_000
    heights = {float(point.split(",")[1]) for point in re.search(r'd="M([^"]+)"', drawn)[1].split("L")}
    assert len(heights) == 2


def test_the_learning_rate_finders_curve_is_drawn_over_decades_with_the_rate_that_was_chosen(tmp_path):
    rates = [1e-5 * 10 ** (step / 10) for step in range(41)]
    curve = {"name": "learning-rate finder", "x_label": "learning rate", "x": rates, "y": [2 - r for r in rates]}
    one = made.record("lr", "pretrain", minute=1, curves=[Curve(**curve, chosen=0.001)])
    drawn = section(write_report(made.save([one], tmp_path)).read_text("utf-8"), "training")
    assert "Learning-rate finder" in drawn
    assert "chosen: 0.001" in drawn
    (at,) = re.findall(r'<line x1="([\d.]+)" y1="[\d.]+" x2="\1" y2="[\d.]+" class="mean"', drawn)
    ends = [float(point.split(",")[0]) for point in re.search(r'd="M([^"]+)"', drawn)[1].split("L")]
    assert float(at) == pytest.approx(ends[0] + 0.5 * (ends[-1] - ends[0]), abs=0.1)  # half way from 1e-5 to 0.1
    assert all(f">{tick}<" in drawn for tick in ("10⁻⁵", "0.0001", "0.001", "0.01", "0.1"))


@pytest.mark.parametrize(("y", "chosen"), [([1.0], 0.1), ([1.0, 2.0], 0.0)])
def test_a_finders_curve_that_cannot_be_drawn_is_left_out(y, chosen, tmp_path):
    curve = Curve(name="learning-rate finder", x_label="learning rate", x=[0.1, 0.2][: len(y)], y=y, chosen=chosen)
    assert "training" not in page_of([made.record("lr", "pretrain", minute=1, curves=[curve])], tmp_path).ids


def test_a_logarithmic_scale_has_its_decades():
    scale = LogScale(1e-4, 1.0, 0.0, 100.0)
    assert [scale(value) for value in scale.decades()] == pytest.approx([0.0, 25.0, 50.0, 75.0, 100.0])
    assert LogScale(0.02, 0.3, 0.0, 1.0).decades() == [0.1]


def test_missing_folder(tmp_path):
    with pytest.raises(DataError, match="isn't a folder"):
        write_report(tmp_path / "nowhere")


def test_folder_without_records(tmp_path):
    (tmp_path / ".hidden").mkdir()
    shutil.copy(__file__, tmp_path / ".hidden" / "stage.json")
    with pytest.raises(CheckpointError, match=r"no stage\.json in"):
        write_report(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"format": 2}', b"\xff\xfe"])
def test_an_unreadable_record_is_named(tmp_path, content):
    made.save([made.pretrain()], tmp_path)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "stage.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"broken.stage\.json") as caught:
        write_report(tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "report.html").exists()


def test_another_place(tmp_path):
    folder = made.save([made.pretrain()], tmp_path / "run")
    assert write_report(folder, tmp_path / "new" / "r.html") == tmp_path / "new" / "r.html"
    assert not (folder / "report.html").exists()
    with pytest.raises(OutputError, match="is a folder"):
        write_report(folder, tmp_path)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (fmt.percent(0.8125), "81.2\u202f%"),
        (fmt.percent(None), fmt.DASH),
        (fmt.points(0.0142), "+1.4"),
        (fmt.points(-0.0142), fmt.MINUS + "1.4"),
        (fmt.points(-0.0001), "±0.0"),
        (fmt.size(999), "999\u202fB"),
        (fmt.size(1_670_400), "1.59\u202fMiB"),
        (fmt.number(1e-5), "10⁻⁵"),
        (fmt.number(2.4e-7), f"2.4{fmt.TIMES}10⁻⁷"),
        (fmt.number(float("inf")), "∞"),
        (fmt.duration(185), "3\u202fmin 05\u202fs"),
        (fmt.microseconds(402), "402\u202fµs"),
        (fmt.microseconds(1402), "1.40\u202fms"),
        (fmt.data_label("card:reviews/train"), "reviews"),
        (fmt.data_label("data/reviews.csv.gz"), "reviews"),
        (fmt.fit("很长的名字", 6), "很长…"),
        (fmt.count(25000), "25\u202f000"),
    ],
)
def test_figures_are_written_one_way(written, expected):
    assert written == expected


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.61, 0.84), (5, 5), (0, 0), (-3, 12), (1e-9, 2e-9), (0, 1e9)])
def test_ticks_span_the_range(low, high):
    ticks = fit_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 9
    assert ticks == sorted(set(ticks))
