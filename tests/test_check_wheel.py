"""The check of wheel and sdist notices what is missing and what does not belong there."""

from __future__ import annotations

import check_wheel
import pytest


def test_files_of_the_checkout_have_their_places_in_the_wheel() -> None:
    files = check_wheel.source_files()
    assert {"coarse2fine/py.typed", "coarse2fine/cli/main.py", "coarse2fine/tiling/image.py"} <= files
    assert {"coarse2fine/models/embedded/digits.c2f", "coarse2fine/report/web/view.js"} <= files
    check_wheel.check_wheel([*files, "coarse2fine-0.0.dist-info/METADATA"])


@pytest.mark.parametrize("missing", ["coarse2fine/models/embedded/digits.c2f", "coarse2fine/report/web/view.js"])
def test_a_missing_file_is_named(missing: str) -> None:
    files = check_wheel.source_files() - {missing}
    with pytest.raises(AssertionError, match=missing):
        check_wheel.check_wheel([*files])
    with pytest.raises(AssertionError, match="missing"):
        check_wheel.check_sdist([f"x/{name}" for name in files])


@pytest.mark.parametrize("extra", ["tests/test_model.py", "scripts/demo.py"])
def test_tests_and_scripts_do_not_belong_there(extra: str) -> None:
    with pytest.raises(AssertionError, match=extra):
        check_wheel.check_wheel([*check_wheel.source_files(), extra])
    with pytest.raises(AssertionError, match=extra):
        check_wheel.check_sdist([f"coarse2fine-0.0/{extra}"])


def test_lowest_versions_are_those_declared() -> None:
    pins = check_wheel.lowest()
    assert "torch==2.4" in pins
    assert all(pin.count("==") == 1 and "[" not in pin for pin in pins)
