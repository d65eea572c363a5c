"""The suite's own rules: hardware tests are counted, skips fail CI, warnings are errors."""

import shutil

import pytest

pytest_plugins = ["pytester"]


@pytest.fixture
def suite(pytester, repo_root, monkeypatch):
    """A small test suite under the repository's conftest.py and pytest configuration."""
    shutil.copy(repo_root / "tests" / "conftest.py", pytester.path / "conftest.py")
    text = (repo_root / "pyproject.toml").read_text()
    (pytester.path / "pyproject.toml").write_text(text.replace('testpaths = ["tests"]\n', ""))
    monkeypatch.delenv("CI", raising=False)
    return pytester


def run(suite, text, *arguments):
    suite.makepyfile(test_it=text)
    return suite.runpytest_subprocess("-p", "no:cacheprovider", *arguments)


SKIP = "import pytest\ndef test_a(): assert True\ndef test_b(): pytest.skip('later')\n"


def test_a_skip_passes_on_a_desk(suite):
    assert run(suite, SKIP).ret == 0


def test_a_skip_fails_ci_and_is_named(suite, monkeypatch):
    monkeypatch.setenv("CI", "true")
    result = run(suite, SKIP)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*CI refuses skipped tests: test_it.py::test_b*"])


def test_a_skipped_module_fails_ci_too(suite, monkeypatch):
    monkeypatch.setenv("CI", "true")
    text = "import pytest\npytest.importorskip('no_such_module')\n"
    suite.makepyfile(test_other="def test_a(): assert True")
    assert run(suite, text).ret == 1


def test_an_expected_failure_is_no_skip(suite, monkeypatch):
    monkeypatch.setenv("CI", "true")
    assert run(suite, "import pytest\n@pytest.mark.xfail(reason='known')\ndef test_a(): assert False\n").ret == 0


def test_slow_tests_are_counted_and_run_on_demand(suite):
    text = "import pytest\ndef test_a(): assert True\n@pytest.mark.slow\ndef test_b(): assert True\n"
    result = run(suite, text)
    result.assert_outcomes(passed=1, deselected=1)
    result.stdout.fnmatch_lines(["deselected on this machine: 1 marked slow"])
    run(suite, text, "--soak").assert_outcomes(passed=2)


def test_gpu_tests_run_where_a_gpu_is(suite):
    import torch

    result = run(suite, "import pytest\n@pytest.mark.gpu\ndef test_a(): assert True\n")
    result.assert_outcomes(**({"passed": 1} if torch.cuda.is_available() else {"deselected": 1}))


def test_warnings_are_errors_and_marks_are_known(suite):
    assert run(suite, "import warnings\ndef test_a(): warnings.warn('old')\n").ret == 1
    assert run(suite, "import pytest\n@pytest.mark.sloww\ndef test_a(): pass\n").ret != 0
