"""What the service answers in Grafana's place, for the Metrics tab of Ray's dashboard."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from http_doubles import FakePool, client_of
from measured import Measured

from dspool.errors import WorkerLost
from dspool_console.charts import Line, chart, shown
from dspool_console.ray_panels import PANEL_ROUTES, PANELS
from dspool_serve.ingress.ray_dashboard import environment

RAY_ASKS = (
    "/grafana/d/rayDefaultDashboard/?orgId=1&theme=dark&kiosk=1&refresh=5s&from=now-5m&to=now&timezone=UTC"
    "&var-SessionName=session_1&var-datasource=Prometheus"
)


class MeasuredPool(FakePool):
    def __init__(self, name: str = "default") -> None:
        super().__init__(name)
        self.asked_s: list[float] = []
        self.lost = False

    async def metrics_history(self, duration_s=60.0, **of):
        self.asked_s.append(duration_s)
        if self.lost:
            raise WorkerLost("the metrics actor is gone")
        measured = Measured("default").run(3)
        measured.snapshot()
        return measured.metrics.history(duration_s)


def charts(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page)]


async def test_ray_is_told_that_there_are_panels():
    async with client_of(MeasuredPool()) as http:
        grafana = await http.get("/grafana/api/health")
        prometheus = await http.get("/grafana/api/v1/query?query=vector(1)")
    assert grafana.json()["database"] == "ok"
    assert prometheus.json()["status"] == "success"


async def test_the_metrics_tab_shows_all_panels_of_all_pools():
    first, second = MeasuredPool("a"), MeasuredPool("b")
    async with client_of(first, second) as http:
        answer = await http.get(RAY_ASKS)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    titles = [svg.get("aria-label") for svg in charts(answer.text)]
    assert titles == 2 * [panel.title for panel in PANELS]
    assert '<body class="dark">' in answer.text
    assert 'http-equiv="refresh" content="5"' in answer.text
    assert first.asked_s == second.asked_s == [pytest.approx(300, abs=1)]


@pytest.mark.parametrize("path", ["/grafana/d/x", "/grafana/d/x/", "/grafana/d/x/slug"])
async def test_the_panels_are_at_every_form_of_the_address(path):
    async with client_of(MeasuredPool()) as http:
        assert len(charts((await http.get(path)).text)) == len(PANELS)


async def test_a_single_panel_carries_its_own_title():
    async with client_of(MeasuredPool()) as http:
        page = (await http.get("/grafana/d-solo/rayDefaultDashboard/default-dashboard?panelId=41")).text
    (svg,) = charts(page)
    assert svg.get("aria-label") == PANELS[41 % len(PANELS)].title


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("now-30s", 30),
        ("now-2d", 86_400),
        ("now-0s", 10),
        ("", 900),
        ("now-9999999999d", 900),
        ("0", 86_400),
        ("²", 900),
        ("<script>", 900),
    ],
)
async def test_the_span_of_time_is_read_or_takes_its_default(text, seconds):
    pool = MeasuredPool()
    async with client_of(pool) as http:
        assert (await http.get("/grafana/d/x", params={"from": text})).status_code == 200
    assert pool.asked_s == [pytest.approx(seconds, abs=1)]


async def test_nothing_of_the_request_comes_back_in_the_page():
    async with client_of(MeasuredPool()) as http:
        page = (await http.get("/grafana/d/%3Cb%3E?theme=<b>&refresh=<b>&from=<b>&panelId=<b>")).text
    assert "<b>" not in page


async def test_the_page_needs_no_script_and_may_load_nothing():
    async with client_of(MeasuredPool()) as http:
        answer = await http.get("/grafana/d/x")
    assert "<script" not in answer.text
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")


async def test_a_pool_whose_metrics_are_lost_says_so():
    away = MeasuredPool("away")
    away.lost = True
    async with client_of(away, MeasuredPool("here")) as http:
        answer = await http.get("/grafana/d/x")
    assert answer.status_code == 200
    assert "cannot be read now" in answer.text
    assert len(charts(answer.text)) == len(PANELS)


async def test_the_api_document_leaves_the_frames_out():
    async with client_of(MeasuredPool()) as http:
        paths = (await http.get("/openapi.json")).json()["paths"]
    assert not [route.path for route in PANEL_ROUTES if route.path in paths]


def test_rays_dashboard_is_pointed_at_the_service():
    variables = environment("0.0.0.0", 8000, {})
    assert variables["RAY_GRAFANA_IFRAME_HOST"] == "http://127.0.0.1:8000/grafana"
    assert set(variables) == {"RAY_GRAFANA_HOST", "RAY_GRAFANA_IFRAME_HOST", "RAY_PROMETHEUS_HOST"}
    assert environment("::1", 80, {})["RAY_GRAFANA_HOST"] == "http://[::1]:80/grafana"


def test_a_real_grafana_is_left_in_its_place():
    assert environment("127.0.0.1", 8000, {"RAY_GRAFANA_HOST": "http://grafana:3000"}) == {}


# --- charts ---


def lines(svg: str) -> list[list[tuple[float, float]]]:
    found = re.findall(r'<polyline points="([^"]*)"', svg)
    return [[tuple(map(float, pair.split(","))) for pair in points.split()] for points in found]


def test_a_line_rises_with_its_value_and_goes_on_with_time():
    ((first, second),) = lines(chart("t", "/s", [Line("a", [(0, 1.0), (1, 2.0)])], start=0, end=1))
    assert second[0] > first[0]
    assert second[1] < first[1]


def test_a_gap_in_what_was_measured_is_a_gap_in_the_line():
    points = [(0, 1.0), (1, 1.0), (9, 1.0), (10, 1.0)]
    assert len(lines(chart("t", "", [Line("a", points)], start=0, end=10, gap_s=3))) == 2


def test_points_outside_the_span_are_not_drawn():
    (drawn,) = lines(chart("t", "", [Line("a", [(-5, 1.0), (1, 1.0), (99, 1.0)])], start=0, end=10))
    assert len(drawn) == 1


def test_nothing_measured_is_said():
    assert "nothing measured yet" in chart("t", "", [Line("a", [])], start=0, end=10)


def test_labels_are_escaped():
    svg = chart("<b>", "", [Line("<i>&", [(0, 1.0)])], start=0, end=1)
    assert ElementTree.fromstring(svg).get("aria-label") == "<b>"
    assert "<i>" not in svg


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0123, "s", "12.3 ms"),
        (2.5, "s", "2.5 s"),
        (0.855, "%", "85.5 %"),
        (12_345, "/s", "12.3k/s"),
        (1234.5, "", "1234"),
        (0, "", "0"),
    ],
)
def test_values_are_shown_for_people(value, unit, text):
    assert shown(value, unit) == text
