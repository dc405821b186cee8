"""A run tells where it is: plain lines for logs, a bar on terminals."""

from __future__ import annotations

import pytest

from spheregen.progress import BarReporter, LineReporter, QuietReporter, Reporter, default_reporter


@pytest.mark.parametrize("reporter", [LineReporter(every=0.0), BarReporter(), QuietReporter()])
def test_reporters_survive_a_run(reporter: Reporter, capsys: pytest.CaptureFixture[str]) -> None:
    reporter.message("hello [not markup]")
    reporter.start(total=3, done=1, unit_images=8)
    reporter.step(2, None)
    reporter.step(3, {"loss": 0.5})
    reporter.stop()
    text = capsys.readouterr().err
    if type(reporter) is LineReporter:
        assert "step 3/3  loss 0.5000" in text and "images/s" in text and "left" in text
    if not isinstance(reporter, QuietReporter):
        assert "hello [not markup]" in text


def test_pipes_and_quiet_get_plain_lines() -> None:
    assert isinstance(default_reporter(quiet=True), QuietReporter)
    assert isinstance(default_reporter(), LineReporter)  # pytest's stderr is no terminal
