"""What a person sees of two tracked runs: the UI of a real server in Debian's Chromium."""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from mlflow.entities import Run
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from harness import Lab, free_port

CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    # The module and not each test, for one line in pytest's summary.
    pytest.skip("no Chromium on this machine: apt install chromium", allow_module_level=True)

# Root in a container has no sandbox; the rest keeps Chromium from talking to anyone but the server.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
EVIDENCE = Path(__file__).parents[1] / "test-results"
PATIENCE_MS = 30_000
CHANGED = "model.init_args.lr"
EQUAL = "model.init_args.num_classes"
# From one point to another. Points are no proof: MLflow draws each twice, once for the smoothed curve.
A_LINE = re.compile(r"^M[^A-Z]+[LCS]")

pytestmark = pytest.mark.browser

Visit = Callable[[str], AbstractContextManager[Page]]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab with the embedded server and two short runs that differ in one parameter."""
    port = free_port()
    lab = Lab(tmp_path_factory.mktemp("lab"), f"http://127.0.0.1:{port}")
    started = lab.run("server", "--detach", "--port", str(port))
    assert started.returncode == 0, started.stdout
    try:
        for change in ([], [f"--{CHANGED}=0.001"]):
            trained = lab.run(
                *("fit", "--config", "configs/digits.yaml", "--experiment", "browser", "--trainer.max_epochs", "2"),
                *change,
                MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL="1",
            )
            assert trained.returncode == 0, trained.stdout
        yield lab
    finally:
        lab.run("server", "--stop")


@pytest.fixture(scope="module")
def run(lab: Lab) -> Run:
    """The run with the changed parameter."""
    (run,) = (run for run in lab.runs("browser") if run.data.params[CHANGED] == "0.001")
    return run


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser, lab: Lab, request: pytest.FixtureRequest) -> Visit:
    """Open a page of the UI in a fresh profile; on failure, what it showed is kept under test-results/."""

    @contextmanager
    def visiting(path: str) -> Iterator[Page]:
        # High enough for the tables, which hold in the page only the rows that would be visible.
        with browser.new_context(viewport={"width": 1400, "height": 1600}) as context:
            context.set_default_timeout(PATIENCE_MS)
            page = context.new_page()
            try:
                page.goto(f"{lab.uri}/#/{path}")
                yield page
            except BaseException:
                EVIDENCE.mkdir(exist_ok=True)
                page.screenshot(path=EVIDENCE / f"{request.node.name}.png")
                (EVIDENCE / f"{request.node.name}.html").write_text(page.content())
                raise

    return visiting


def page_of(run: Run, tab: str = "") -> str:
    return f"experiments/{run.info.experiment_id}/runs/{run.info.run_id}{tab}"


def curve(page: Page, metric: str) -> Locator:
    """The curve in one metric's chart; the search brings it into view, since charts elsewhere are not drawn."""
    page.get_by_role("searchbox", name="Search metric charts").fill(f"{metric}$")
    card = page.get_by_test_id("experiment-view-compare-runs-card")
    return card.filter(has=page.get_by_role("heading", name=metric, exact=True)).locator("path.js-line").first


def parameter(page: Page, name: str) -> Locator:
    """The row of one parameter on the page that compares runs."""
    return page.get_by_role("row").filter(has=page.get_by_role("rowheader", name=name, exact=True))


def test_the_experiment_is_in_the_list(visit: Visit, run: Run) -> None:
    """Guards: a user opens the UI and does not find the experiment that `trainer fit` reported to."""
    with visit("experiments") as page:
        page.get_by_role("link", name="browser", exact=True).click()
        expect(page).to_have_url(re.compile(rf"#/experiments/{run.info.experiment_id}\b"))


def test_runs_are_in_the_table_by_their_names(visit: Visit, lab: Lab, run: Run) -> None:
    """Guards: a run is missing, doubled or nameless in the table, or its name does not lead to its page."""
    with visit(f"experiments/{run.info.experiment_id}/runs") as page:
        links = page.get_by_role("gridcell").get_by_role("link", name=re.compile("^digits-"))
        expect(links).to_have_count(2)
        assert set(links.all_inner_texts()) == {run.info.run_name for run in lab.runs("browser")}
        page.get_by_role("link", name=run.info.run_name, exact=True).click()
        expect(page.get_by_role("heading", name=run.info.run_name)).to_be_visible()
        expect(page).to_have_url(re.compile(run.info.run_id))


def test_the_run_page_shows_its_end_and_its_parameters(visit: Visit, run: Run) -> None:
    """Guards: the page of a finished run shows another status, or not the value that the run was started with."""
    with visit(page_of(run)) as page:
        expect(page.get_by_role("status").filter(has_text="Finished")).to_be_visible()
        page.get_by_placeholder("Search parameters").fill(CHANGED)
        row = page.get_by_role("row").filter(has=page.get_by_role("cell", name=CHANGED, exact=True))
        expect(row.get_by_role("cell")).to_have_text([CHANGED, "0.001"])


def test_a_model_metric_is_a_curve_over_epochs(visit: Visit, run: Run) -> None:
    """Guards: metrics come without steps or only their last value does, so that the chart is a bar, not a curve."""
    with visit(page_of(run, "/model-metrics")) as page:
        expect(curve(page, "val_loss")).to_have_attribute("d", A_LINE)


def test_system_metrics_have_charts_of_the_cpu(visit: Visit, run: Run) -> None:
    """Guards: the tab for system metrics is empty, since none were sampled or they lack the `system/` prefix."""
    with visit(page_of(run, "/system-metrics")) as page:
        expect(curve(page, "cpu_utilization_percentage")).to_have_attribute("d", A_LINE)


def test_artifacts_are_listed_and_shown(visit: Visit, run: Run) -> None:
    """Guards: the resolved config is not with the run, or the server cannot hand its bytes to the browser."""
    with visit(page_of(run, "/artifacts")) as page:
        page.get_by_role("listitem").filter(has_text="config.yaml").click()
        expect(page.get_by_role("main")).to_contain_text("trainer.vision.ImageClassifier")


def test_the_model_is_reached_from_its_run(visit: Visit, run: Run) -> None:
    """Guards: the best model is not linked to its run, is not ready, or its files are not on the server."""
    with visit(page_of(run)) as page:
        logged = page.get_by_role("row").filter(has=page.get_by_role("status").filter(has_text="Ready"))
        logged.get_by_role("link", name="model", exact=True).click()
        page.get_by_role("main").get_by_role("link", name="Artifacts", exact=True).click()
        page.get_by_role("listitem").filter(has_text="MLmodel").click()
        expect(page.get_by_role("main")).to_contain_text("mlflow.pytorch")
        expect(page.get_by_role("main")).to_contain_text("signature")


def test_comparing_runs_shows_the_changed_parameter(visit: Visit, run: Run) -> None:
    """Guards: the parameter that differs is not recorded as what it was, so that two runs compare as if equal."""
    with visit(f"experiments/{run.info.experiment_id}/runs") as page:
        expect(page.get_by_role("link", name=run.info.run_name, exact=True)).to_be_visible()
        page.get_by_role("checkbox", name="Select all runs").check()
        page.get_by_role("button", name="Compare", exact=True).click()
        expect(page.get_by_role("heading", name="Comparing 2 Runs")).to_be_visible()

        # The changed parameter is highlighted, an equal one is not …
        values = parameter(page, CHANGED).get_by_role("cell")
        expect(values).to_have_text(["0.001", "0.003"])
        plain = parameter(page, EQUAL).get_by_role("cell")
        expect(plain).to_have_text(["10", "10"])
        background = "cell => getComputedStyle(cell).backgroundColor"
        assert values.first.evaluate(background) != plain.first.evaluate(background)

        # … and it stays when the equal ones are hidden.
        page.get_by_role("switch", name="Parameters - Show diff only").click()
        expect(parameter(page, EQUAL)).to_have_count(0)
        expect(values).to_have_text(["0.001", "0.003"])
