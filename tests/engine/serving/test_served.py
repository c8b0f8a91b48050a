"""engine.serving.served: servers outside a run, with a program that answers as a ready server does."""

import sys

import psutil
import pytest

from engine.config.load import load
from engine.errors import RunError
from engine.rundir.layout import RunDir
from engine.serving.addresses import endpoint_urls
from engine.serving.models import find_models
from engine.serving.probe import server_is_ready
from engine.serving.served import served

READY = """
import http.server, sys
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Ready).serve_forever()
"""


@pytest.fixture
def judged(tmp_path):
    """A scripted policy, and a judge whose server is this script."""

    def configured(script, *overrides):
        (tmp_path / "server.py").write_text(script)
        sets = ["scorer.judge=sim", "endpoints.sim.launch=sglang", "endpoints.sim.model=tiny"]
        sets.append(f"endpoints.sim.sglang={sys.executable} -S {tmp_path / 'server.py'}")
        config = load("dry", [*sets, "endpoints.sim.device=cpu", *overrides]).config
        return find_models(config).into(config)

    return configured


def test_endpoints_are_served_for_the_length_of_the_block(judged, tmp_path):
    """Also where no policy server is started; the engine finds them as in a run."""
    run, config = RunDir(tmp_path), judged(READY)
    with served(run, config) as policy:
        assert policy == []
        url = endpoint_urls(run, config)["sim"]
        assert server_is_ready(url)
    assert not server_is_ready(url)


def test_one_that_does_not_start_is_told_with_its_last_words(judged, tmp_path):
    """Whether it ends, or takes longer than its own limit."""
    before = set(psutil.Process().children())
    with (
        pytest.raises(RunError, match=r"endpoint-sim did not start\n.*endpoint-sim.log:\n  \| no such thing"),
        served(RunDir(tmp_path), judged("import sys\nsys.exit('no such thing')")),
    ):
        pass
    with (
        pytest.raises(RunError, match="endpoint-sim did not start"),
        served(RunDir(tmp_path), judged("import time\ntime.sleep(60)", "endpoints.sim.start_s=0.5")),
    ):
        pass
    assert set(psutil.Process().children()) <= before
